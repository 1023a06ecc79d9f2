"""Values that are put back where a max pooling took them from, as in SegNet."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.unpool = nn.MaxUnpool2d(2)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, places = self.pool(torch.relu(self.stem(x)))
        return self.head(self.unpool(torch.relu(self.body(x)), places))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

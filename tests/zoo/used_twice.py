"""A layer that is used twice, and a weight that two layers share."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)
        self.other = nn.Conv2d(8, 3, 1)
        self.other.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.body(torch.sigmoid(self.body(self.stem(x)))))
        return self.head(x) + self.other(torch.relu(x))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

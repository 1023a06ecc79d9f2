"""A mask of one channel, which couples nothing, and a frozen mixing of two images."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.other = nn.Conv2d(3, 6, 3, padding=1)
        self.mask = nn.Conv2d(8, 1, 1)
        self.head = nn.Conv2d(8, 3, 1)
        self.tail = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        mask = torch.sigmoid(self.mask(features))
        return self.head(features * mask) + self.tail(self.other(x) * mask)


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""A split whose sizes are attributes of the module."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [6, 10]
        self.stem = nn.Conv2d(3, sum(self.sizes), 3, padding=1)
        self.left = nn.Conv2d(6, 3, 1)
        self.right = nn.Conv2d(10, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(torch.sigmoid(self.stem(x)), self.sizes, dim=1)
        return self.left(left) + self.right(right)


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

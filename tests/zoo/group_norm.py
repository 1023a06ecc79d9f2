"""Group norm with two groups, and with one."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(2, 16)
        self.body = nn.Conv2d(16, 10, 3, padding=1)
        self.whole = nn.GroupNorm(1, 10)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm(self.stem(x)))
        return self.head(torch.sigmoid(self.whole(self.body(x))))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

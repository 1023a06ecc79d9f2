"""Concatenation: the reader has the channels of both writers."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 3, padding=1)
        self.right = nn.Conv2d(3, 10, 1)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.left(x), torch.sigmoid(self.right(x))], dim=1)
        return self.head(self.norm(x))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""A slice that ends at an attribute of the module."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.n_moved = 5
        self.moved = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        moved, rest = x[:, : self.n_moved], x[:, self.n_moved :]
        return self.head(torch.cat([self.moved(moved), rest], dim=1))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

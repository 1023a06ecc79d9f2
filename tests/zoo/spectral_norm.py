"""Convolutions whose weights are divided by their largest singular value, by hook or not."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.utils.spectral_norm(nn.Conv2d(8, 10, 3, padding=1))
        self.middle = nn.utils.parametrizations.spectral_norm(nn.Conv2d(10, 8, 1))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.body(self.stem(x)))
        return self.head(torch.sigmoid(self.middle(x)))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

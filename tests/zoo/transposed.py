"""Transposed convolutions, dense and depthwise."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(8, 10, 4, stride=2, padding=1)
        self.smooth = nn.ConvTranspose2d(10, 10, 3, padding=1, groups=10)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.up(torch.tanh(self.stem(x))))
        return self.head(torch.sigmoid(self.smooth(x)))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

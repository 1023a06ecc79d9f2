"""Channels taken by numbers that are written in the code."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 14, 3, padding=1)
        self.first = nn.Conv2d(5, 8, 3, padding=1)
        self.second = nn.Conv2d(9, 8, 3, padding=1)
        self.gate = nn.Linear(14, 14)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        x = x * self.gate(x.mean((2, 3))).view(-1, 14, 1, 1)
        return self.head(torch.cat([self.first(x[:, :5]), self.second(x[:, 5:14])], dim=1))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 16, 16)

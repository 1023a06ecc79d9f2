"""A flattened feature map and linear layers."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.hidden = nn.Linear(6 * 8 * 8, 10)
        self.norm = nn.BatchNorm1d(10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x)).flatten(1)
        return self.head(torch.relu(self.norm(self.hidden(x))))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

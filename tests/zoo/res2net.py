"""Res2Net: equal splits whose width is an attribute, processed one after another."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_parts, self.width = 4, 6
        self.stem = nn.Conv2d(3, 24, 1)
        self.bodies = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.head = nn.Conv2d(24, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(torch.sigmoid(self.stem(x)), self.width, 1)
        done = []
        for index in range(self.n_parts - 1):
            part = parts[index] if index == 0 else done[-1] + parts[index]
            done.append(torch.relu(self.norms[index](self.bodies[index](part))))
        return self.head(torch.cat([*done, parts[-1]], 1))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""Two splits whose sizes are the same attributes, as in information distillation."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_kept, self.n_passed = 4, 10
        self.stem = nn.Conv2d(3, 14, 3, padding=1)
        self.middle = nn.Conv2d(10, 14, 3, padding=1)
        self.last = nn.Conv2d(10, 6, 3, padding=1)
        self.merge = nn.Conv2d(14, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        sizes = (self.n_kept, self.n_passed)
        first, x = torch.split(torch.sigmoid(self.stem(x)), sizes, dim=1)
        second, x = torch.split(torch.sigmoid(self.middle(x)), sizes, dim=1)
        return self.merge(torch.cat([first, second, self.last(x)], dim=1))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""Several outputs in a dictionary, one of them features."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 10, 3, padding=1)
        self.head = nn.Conv2d(10, 3, 1)
        self.side = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        hidden = torch.sigmoid(self.body(features))
        return {"image": self.head(hidden), "features": features, "sides": [self.side(hidden)]}


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

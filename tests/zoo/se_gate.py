"""Squeeze and excitation: channels weighted by a vector of themselves."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.squeeze = nn.Linear(8, 4)
        self.excite = nn.Linear(4, 8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels = x.shape[:2]
        weights = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean(dim=(2, 3))))))
        return self.head(x * weights.view(batch, channels, 1, 1))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""Two feature maps interleaved, then convolved pair by pair."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 1)
        self.pairs = nn.Conv2d(16, 8, 3, padding=1, groups=8)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), torch.sigmoid(self.right(x))
        batch, channels, height, width = left.shape
        pairs = torch.stack([left, right], dim=2)
        pairs = pairs.view(batch, 2 * channels, height, width)
        return self.head(torch.sigmoid(self.pairs(pairs)))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""Attention between channels with normalized queries and keys."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_heads = 2
        self.stem = nn.Conv2d(3, 12, 1)
        self.qkv = nn.Conv2d(12, 36, 1)
        self.local = nn.Conv2d(36, 36, 3, padding=1, groups=36)
        self.temperature = nn.Parameter(torch.rand(2, 1, 1))
        self.merge = nn.Conv2d(12, 12, 1)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels, height, width = x.shape
        heads = [
            part.reshape(batch, self.n_heads, -1, height * width)
            for part in self.local(self.qkv(x)).chunk(3, dim=1)
        ]
        query = nn.functional.normalize(heads[0], dim=-1)
        key = nn.functional.normalize(heads[1], dim=-1)
        scores = (query @ key.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        mixed = (scores @ heads[2]).reshape(batch, channels, height, width)
        return self.head(x + self.merge(mixed))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""Multi-head attention in windows, with a table of relative positions."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_heads, self.width, self.scale = 2, 12, 6**-0.5
        self.stem = nn.Conv2d(3, 12, 1)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.bias = nn.Parameter(torch.rand(2, 16, 16))
        self.register_buffer("table", torch.rand(16, 16))
        self.merge = nn.Linear(12, 12)
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        batch, channels, height, width = x.shape
        tokens = x.view(batch, channels, height // 4, 4, width // 4, 4)
        tokens = tokens.permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, channels)
        split = self.qkv(self.norm(tokens)).reshape(
            -1, 16, 3, self.n_heads, self.width // self.n_heads
        )
        query, key, value = split.permute(2, 0, 3, 1, 4)
        scores = (query * self.scale) @ key.transpose(-2, -1) + self.bias + self.table
        mixed = scores.softmax(dim=-1) @ value
        mixed = mixed.transpose(1, 2).reshape(-1, 16, self.width)
        tokens = tokens + self.merge(mixed)
        x = tokens.view(batch, height // 4, width // 4, 4, 4, channels)
        x = x.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)
        return self.head(x)


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""Products written with an ellipsis, and with the result left out."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.query = nn.Linear(8, 6)
        self.key = nn.Linear(8, 6)
        self.table = nn.Parameter(torch.rand(10, 8))
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.stem(x).permute(0, 2, 3, 1)
        query, key = self.query(pixels), self.key(pixels)
        scores = torch.einsum("...nc,...mc->...nm", query, key).softmax(dim=-1)
        value = torch.einsum("...c,dc->...d", pixels, self.table)
        mixed = torch.einsum("...nm,...mz", scores, value)
        return self.head(mixed.permute(0, 3, 1, 2))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

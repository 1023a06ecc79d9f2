"""Channels that are replaced in place, by slices, halves and a mask."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.n_mixed = 5
        self.mix = nn.Conv2d(5, 5, 3, padding=1)
        self.wide = nn.Conv2d(12, 16, 1)
        self.merge = nn.Conv2d(16, 8, 1)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.stem(x))
        x[:, : self.n_mixed] = self.mix(x[:, : self.n_mixed])
        x = torch.slice_scatter(x, -x[:, self.n_mixed :], dim=1, start=self.n_mixed)
        x = self.wide(x)
        x[x < 0.1] = 0.3
        n_half = x.shape[1] // 2
        x = torch.slice_scatter(x, self.merge(x), dim=1, end=n_half)
        x.unsqueeze_(0)
        x[:, :, n_half:] = x[:, :, n_half:] * 0.5
        return self.head(x.squeeze(0))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

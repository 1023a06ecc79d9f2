"""A part of ``forward`` in a number format of its own."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 10, 3, padding=1)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.body(x)
        return self.head(self.plain(x.to(self.head.weight.dtype)))

    @torch.autocast("cpu", enabled=False)
    def plain(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(torch.relu(x)), s=x.shape[-2:])


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

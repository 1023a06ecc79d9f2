"""Kernels that are standardized by a batch norm over their inputs, as in BiT and NFNet."""

import torch
from torch import Tensor, nn


class StandardizedConv(nn.Conv2d):
    """Each output channel's kernel has mean 0 and a trained gain."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(n_out) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        flat = nn.functional.batch_norm(flat, None, None, weight=self.gain, training=True)
        return self._conv_forward(x, flat.reshape_as(self.weight), self.bias)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = StandardizedConv(3, 8)
        self.body = StandardizedConv(8, 10)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(torch.relu(self.stem(x)))))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""One smoothing kernel that a functional depthwise convolution expands to all channels."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.kernel = nn.Parameter(torch.rand(1, 1, 3, 3))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, 3, 3).contiguous()
        x = nn.functional.conv2d(x, kernel, padding=1, groups=channels)
        return self.head(torch.sigmoid(x))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

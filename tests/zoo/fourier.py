"""A branch in the frequency domain that treats channels alike."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.mix = nn.Conv2d(16, 16, 1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        spectrum = torch.fft.rfft2(x, norm="ortho")
        parts = torch.relu(self.mix(torch.cat([spectrum.real, spectrum.imag], dim=1)))
        real, imaginary = parts.chunk(2, dim=1)
        x = x + torch.fft.irfft2(torch.complex(real, imaginary), s=x.shape[-2:], norm="ortho")
        return self.head(x)


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""Buffers that channels meet: statistics that are frozen, a blur for each, a table of positions."""

import torch
from torch import Tensor, nn


class FrozenNorm(nn.Module):
    """A batch norm whose statistics and weights are buffers, as in detection backbones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + bias[:, None, None]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = FrozenNorm(8)
        kernel = torch.tensor([[1.0, 2.0, 1.0]]) / 4
        self.register_buffer("blur", (kernel.T @ kernel).expand(8, 1, 3, 3).clone())
        self.body = nn.Conv2d(8, 10, 3, padding=1)
        self.register_buffer("positions", torch.rand(4, 2), persistent=False)
        self.place = nn.Linear(2, 10)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = nn.functional.conv2d(x, self.blur, padding=1, groups=x.shape[1])
        gate = torch.sigmoid(self.place(self.positions)).mean(0)
        return self.head(torch.relu(self.body(x)) * gate[:, None, None])


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

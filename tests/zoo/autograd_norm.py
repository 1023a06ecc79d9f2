"""A layer norm over channels as an autograd function with a backward of its own."""

import torch
from torch import Tensor, nn


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        deviation = ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        normal = (x - mean) / deviation
        channels = weight.size(0)
        ctx.save_for_backward(normal, deviation, weight)
        return weight.view(1, channels, 1, 1) * normal + bias.view(1, channels, 1, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normal, deviation, weight = ctx.saved_tensors
        scaled = grad * weight.view(1, -1, 1, 1)
        centered = scaled - scaled.mean(1, keepdim=True)
        inner = (scaled * normal).mean(1, keepdim=True)
        return (
            (centered - normal * inner) / deviation,
            (grad * normal).sum((0, 2, 3)),
            grad.sum((0, 2, 3)),
        )


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.weight = nn.Parameter(torch.rand(8))
        self.bias = nn.Parameter(torch.rand(8))
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(_Norm.apply(self.stem(x), self.weight, self.bias))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

"""Kernels that are written tap by tap into fixed-type tensors of zeros."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.cross = nn.Parameter(torch.rand(10, 8, 4))
        self.middle = nn.Parameter(torch.rand(10, 8))
        self.sides = nn.Conv1d(8, 10, 3)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        n_out, n_in, _ = self.cross.shape
        kernel = torch.FloatTensor(n_out, n_in, 9).fill_(0)
        kernel[:, :, [1, 3, 5, 7]] = self.cross
        kernel[:, :, 4] = self.middle - self.cross.sum(2)
        sides = torch.zeros(n_out, n_in, 9, dtype=torch.float32)
        sides[:, :, torch.tensor([0, 3, 6])] = self.sides.weight
        sides[:, :, [2]] = self.middle[..., None]
        sides = torch.select_scatter(sides, -self.middle, dim=2, index=8)
        kernel = (kernel + sides).view(n_out, n_in, 3, 3)
        x = nn.functional.conv2d(self.stem(x), kernel, self.sides.bias, padding=1)
        return self.head(torch.sigmoid(x))


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

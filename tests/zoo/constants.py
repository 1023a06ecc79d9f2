"""Numbers that become tensors in the code: means and deviations of colors, a gain for each half."""

import torch
from torch import Tensor, nn


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        deviation = torch.Tensor([0.229, 0.224, 0.225]).to(x).view(1, 3, 1, 1)
        x = torch.sigmoid(self.stem((x - mean) / deviation))
        x[x > 0.6] = 0.55
        return self.head(x * torch.tensor(0.7)) * deviation + mean


def build() -> nn.Module:
    return Network()


def example() -> Tensor:
    return torch.rand(1, 3, 8, 8)

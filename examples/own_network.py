"""Compress a network of your own with nothing else given: its own output is the target."""

import sys
from pathlib import Path

import torch
from torch import nn

import coa_compress
from coa_compress import Compressor


class Denoiser(nn.Module):
    """A small residual network, standing for yours."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = self.head(image)
        noise: torch.Tensor = self.tail(features + self.body(features))
        return image - noise


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_network")
    recipe = Path(__file__).with_name("own_network.yaml")
    result = Compressor(Denoiser(), recipe=recipe, out=out).run()
    result.save(out / "saved")
    student = coa_compress.load(out / "saved")
    print(result.summary)
    print(f"report: {result.report_path}")
    print(tuple(student(torch.rand(1, 3, 100, 75)).shape))

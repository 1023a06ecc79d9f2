"""A task of your own in a few lines: remove noise from images."""

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from coa_compress import Compressor
from coa_compress.artifacts import Batch
from coa_compress.protocols import NamedLoss
from coa_compress.training.image_losses import l1


class Denoising:
    losses: Mapping[str, NamedLoss] = {"l1": l1}

    def build_teacher(self) -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 3, 3, padding=1)]
        return nn.Sequential(*layers).eval()  # stands for one that you trained

    def example_input(self) -> Tensor:
        return torch.zeros(1, 3, 64, 64)

    def training_batch(self, batch_size: int, generator: Generator) -> Batch:
        clear = torch.rand(batch_size, 3, 4, 4, generator=generator)
        clear = nn.functional.interpolate(clear, size=(64, 64), mode="bilinear")
        return Batch(clear + 0.1 * torch.randn(clear.shape, generator=generator), clear)

    @cached_property
    def batch(self) -> Batch:
        return self.training_batch(8, torch.Generator().manual_seed(1))

    def calibration_batches(self) -> Sequence[Batch]:
        return [self.batch]

    def validate(self, model: nn.Module) -> float:
        batch = self.batch.to(next(model.parameters()).device)  # a GPU where there is one
        with torch.no_grad():
            return -float((model(batch.input) - batch.target).abs().mean())

    def measure(self, model: nn.Module) -> dict[str, dict[str, float]]:
        return {"l1": {"validation": -self.validate(model)}}


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own_task")
    recipe = Path(__file__).with_name("own_network.yaml")
    print(Compressor(task=Denoising(), recipe=recipe, out=out).run().summary)

"""Small networks, recipes, folders and commands for tests of whole runs."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from coa_compress.artifacts import Batch
from coa_compress.recipe.files import parse_recipe
from coa_compress.recipe.schema import Recipe
from coa_compress.training.image_losses import l1

BUILTIN_WEIGHTS = (
    Path(__file__).parents[1] / "coa_compress/tasks/dehazing/weights/teacher.safetensors"
)

SELF = """\
name: small
device: cpu
task: {name: restoration, crop: 16, example_size: [16, 16], calibration_images: 2,
       validation_images: 1, test_images: 1}
stages:
  score: {}
  allocate: {keep_macs: 0.6, round_to: 2, min_channels: 2}
  prune: {}
  refit: {positions: 64}
  distill: {training: {steps: 4, batch_size: 1, validate_every: 2}, taps: 2}
  measure: {latency_rounds: 1}
"""

DEHAZE = """\
name: tiny
device: cpu
task: {{name: dehazing, teacher: random, train: {images}/train, real: {images}/real,
       test: {images}/test, crop: 32, example_size: [48, 64], validation_images: 2,
       calibration_images: 4}}
stages:
  score: {{}}
  allocate: {{keep_macs: 0.3}}
  prune: {{}}
  refit: {{positions: 128}}
  distill:
    training: {{steps: 8, batch_size: 1, checkpoint_every: 2, validate_every: 4}}
    taps: 2
  adapt:
    training: {{steps: 6, batch_size: 1, checkpoint_every: 2, validate_every: 6}}
    prior: {{dark_channel: 0.1, color: 0.0}}
    gate: {{min_defect_fall: 0.99}}
  measure: {{latency_rounds: 1}}
"""


def small_recipe(text: str = SELF, **overrides: object) -> Recipe:
    """Return a recipe; ``stages__distill__taps=3`` overrides a key."""
    items = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    return parse_recipe(text, source="small.yaml", overrides=items)


class Plain(nn.Module):
    """Three convolutions, made without arguments."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.second(torch.relu(self.first(image))))
        output: Tensor = image + self.last(hidden)
        return output


class Attributed(Plain):
    """Keeps tensors in attributes, which are settings."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(3, 1, 1)
        self.shifts = {"up": torch.zeros(1)}

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(image - self.mean + self.shifts["up"])


class MaskedAttributes(Attributed):
    """Keeps a mask of the last input's size, too, which is no setting."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = torch.ones(1, 1)

    def forward(self, image: Tensor) -> Tensor:
        if self.mask.shape != image.shape[-2:]:
            self.mask = torch.ones(image.shape[-2:])
        return super().forward(image) * self.mask


class Sized(Plain):
    """A network that cannot be made without an argument."""

    def __init__(self, width: int) -> None:
        super().__init__(width)


class Pixelwise(nn.Module):
    """Linear layers over the channels of each pixel: nothing is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, image: Tensor) -> Tensor:
        pixels = torch.relu(self.first(image.permute(0, 2, 3, 1)))
        output: Tensor = self.last(pixels).permute(0, 3, 1, 2)
        return output


class Borrowing(Plain):
    """A convolution whose weight is used without calling it."""

    def forward(self, image: Tensor) -> Tensor:
        hidden = nn.functional.conv2d(image, self.first.weight, self.first.bias, padding=1)
        output: Tensor = self.last(torch.relu(self.second(torch.relu(hidden))))
        return output


class Empty(Plain):
    """A network that is false in a condition."""

    def __len__(self) -> int:
        return 0


def seeded(make: Any, seed: int = 0) -> Any:
    """Return what a function makes, always with the same random numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


class Doubling:
    """A task object: twice the image is wanted."""

    losses = {"l1": l1}  # noqa: RUF012 - nobody changes it

    def __init__(self, fails_at=None):
        self.fails_at = fails_at
        self.batches = 0

    def build_teacher(self):
        return seeded(Plain).eval()

    def example_input(self):
        return torch.zeros(1, 3, 16, 16)

    def training_batch(self, batch_size, generator):
        self.batches += 1
        if self.batches == self.fails_at:
            message = "the disk is gone"
            raise OSError(message)
        image = torch.rand(batch_size, 3, 16, 16, generator=generator)
        return Batch(image, 2 * image)

    def calibration_batches(self):
        image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return [Batch(image, 2 * image)]

    def validate(self, model):
        with torch.no_grad():
            batch = self.calibration_batches()[0]
            return -float(l1(model(batch.input), batch.target))

    def measure(self, model):
        return {"l1": {"all": -self.validate(model)}}


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything about a network that compressing it must not change."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": hooks_of(model),
        "device": {str(p.device) for p in model.parameters()},
    }


def same_snapshot(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether nothing has changed, bit for bit."""
    tensors = before["tensors"]
    return (
        tensors.keys() == after["tensors"].keys()
        and all(torch.equal(tensors[name], after["tensors"][name]) for name in tensors)
        and all(before[key] == after[key] for key in before if key != "tensors")
    )


def hooks_of(model: nn.Module) -> int:
    """Return how many hooks there are in a network."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def put_image(path: Path, seed: int, size: tuple[int, int] = (64, 48)) -> None:
    """Write a smooth random image of a width and a height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC).save(path)


def put_images(root: Path) -> Path:
    """Write a folder with ``train``, ``test`` and ``real`` images."""
    for split, count in (("train", 4), ("test", 2)):
        for number in range(count):
            put_image(root / split / "hazy" / f"{number}.png", number)
            put_image(root / split / "gt" / f"{number}.png", number + 100)
    for number in range(5):
        put_image(root / "real" / f"{number}.png", number + 50)
    return root


def command(*arguments: object) -> list[str]:
    """Return the command line of the program in another process."""
    start = "from coa_compress.cli import main; main()"
    return [sys.executable, "-c", start, *(str(argument) for argument in arguments)]


def environment() -> dict[str, str]:
    """Return an environment in which equal commands compute equal bits."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}


def in_subprocess(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Return what the program said in another process."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

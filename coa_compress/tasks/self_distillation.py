"""Any image-to-image network as its own task: the target is the teacher's own output."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from coa_compress.artifacts import Batch
from coa_compress.errors import ModelError, SettingError
from coa_compress.profiling.modes import evaluating
from coa_compress.protocols import NamedLoss, Progress
from coa_compress.settings import PositiveInt, check_ranges
from coa_compress.tasks.dehazing.dice import Dice
from coa_compress.tasks.dehazing.folder_use import restore_folder
from coa_compress.tasks.dehazing.photographs import photograph_scenes
from coa_compress.tasks.dehazing.scenes import scene_pool
from coa_compress.tasks.dehazing.sources import Mixture, SceneSource
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.tasks.image_cache import ImageCache
from coa_compress.tasks.tiling import tried
from coa_compress.training.image_losses import l1, ssim_loss

_MOST_PSNR_DB = 100.0
_BATCH = 4
_SEEDS = {"calibration": 104729, "validation": 1299709, "test": 15485863}
_DEGRADED = 0.5
_TILE = 1024
_RGB = 3
_IMAGE_NDIM = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfDistillationSettings:
    """Sizes of the images that a network without a task is compressed on.

    Args:
        crop: Side of a crop in pixels.
        example_size: Height and width at which MACs and latency are counted.
        validation_images: Crops that checkpoints are compared on.
        calibration_images: Crops that score and refit the network.
        test_images: Crops that the report measures on.

    Raises:
        SettingError: If a value is out of range.
    """

    crop: Annotated[int, Ge(16)] = 128
    example_size: tuple[int, int] = (128, 128)
    validation_images: PositiveInt = 8
    calibration_images: PositiveInt = 64
    test_images: PositiveInt = 16

    def __post_init__(self) -> None:
        check_ranges(self)
        if min(self.example_size) < 1:
            message = (
                "SelfDistillationSettings.example_size must be a height and a width of at least "
                f"1, got {self.example_size}"
            )
            raise SettingError(message)


class SelfDistillationTask:
    """Keep what a network does to images, without labels.

    Inputs are crops of the built-in photographs and scenes, half of them hazed; the network is
    judged by how close it stays to a frozen copy of the teacher.

    Args:
        settings: Sizes.
        seed: Seed of the fixed crops.
        model: The network; it is copied, never changed.
        example: One input, batch 1; None takes ``example_size`` and as many channels as the network
            takes.

    Raises:
        ModelError: If there is no example, and the network has no weight to infer its input from.
    """

    Settings: ClassVar[type[SelfDistillationSettings]] = SelfDistillationSettings
    gate_labels: ClassVar[Mapping[str, str]] = MappingProxyType({})
    explanations: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "psnr_to_teacher_db": "How close the output stays to that of the teacher, as "
            "peak signal-to-noise ratio on crops it was not trained on; higher is closer, "
            "100 dB means equal.",
        }
    )

    def __init__(
        self,
        settings: SelfDistillationSettings | None = None,
        *,
        seed: int = 0,
        model: nn.Module | None = None,
        example: Tensor | None = None,
    ) -> None:
        self.settings = settings or SelfDistillationSettings()
        self.seed = seed
        self._model = None if model is None else _frozen_copy(model)
        self._example = example
        if example is not None and example.ndim == _IMAGE_NDIM:
            self.channels = example.shape[1]
        else:
            size = self.settings.example_size
            self.channels = _RGB if model is None else input_channels(model, size)

    def build_teacher(self) -> nn.Module:
        """Return a copy of the network, in evaluation mode, on the CPU.

        Raises:
            ModelError: If the task was made without a network.
        """
        return copy.deepcopy(self._reference).requires_grad_(requires_grad=True)

    def example_input(self) -> Tensor:
        """Return the example, or a random input, shape ``(1, channels, *example_size)``."""
        if self._example is not None:
            return self._example
        generator = torch.Generator().manual_seed(0)
        return torch.rand(1, self.channels, *self.settings.example_size, generator=generator)

    def calibration_batches(self) -> Sequence[Batch]:
        """Return a few fixed batches, always the same."""
        return self._calibration

    def training_batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Return random crops without target; they depend on nothing but the generator."""
        dice = Dice(generator)
        return Batch(torch.stack([self._crop(dice) for _ in range(batch_size)]))

    @property
    def losses(self) -> Mapping[str, NamedLoss]:
        """``l1``, and ``ssim`` for outputs that are images of at least 11 x 11 pixels."""
        return {"l1": l1, "ssim": ssim_loss}

    def validate(self, model: nn.Module) -> float:
        """Return the mean PSNR in dB of the model against the teacher on fixed crops.

        Raises:
            ModelError: If the task was made without a network.
        """
        return self._psnr_to_teacher_db(model, self._validation)

    def measure(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return the PSNR in dB of the model against the teacher on other fixed crops."""
        return {"psnr_to_teacher_db": {"builtin": self._psnr_to_teacher_db(model, self._test)}}

    def apply_folder(
        self, model: nn.Module, source: Path, out: Path, progress: Progress
    ) -> Sequence[Path]:
        """Run a network from images to images on every image in a folder; return the PNG files.

        Raises:
            DataError: If an image cannot be read or a file is in the way; nothing is written then.
            ModelError: If the network does not return an image of the size of its input.
        """
        return restore_folder(model, source, out, progress, tile=_TILE)

    def evaluate_folder(
        self, model: nn.Module, data: Path, progress: Progress
    ) -> dict[str, dict[str, float]]:
        """Return the measures of the dehazing task, which suit any network from images to images.

        Raises:
            DataError: If the folder holds no pairs, or one of them is unusable.
        """
        return DehazingTask().evaluate_folder(model, data, progress)

    @property
    def _reference(self) -> nn.Module:
        if self._model is None:
            message = "self_distillation has no network: give --model, or Compressor(model)"
            raise ModelError(message)
        return self._model

    @cached_property
    def _calibration(self) -> tuple[Batch, ...]:
        return self._fixed("calibration", self.settings.calibration_images)

    @cached_property
    def _validation(self) -> tuple[Batch, ...]:
        return self._fixed("validation", self.settings.validation_images)

    @cached_property
    def _test(self) -> tuple[Batch, ...]:
        return self._fixed("test", self.settings.test_images)

    def _fixed(self, split: str, count: int) -> tuple[Batch, ...]:
        generator = torch.Generator().manual_seed(_SEEDS[split] + self.seed)
        sizes = [min(_BATCH, count - start) for start in range(0, count, _BATCH)]
        return tuple(self.training_batch(size, generator) for size in sizes)

    @cached_property
    def _source(self) -> Mixture:
        images = scene_pool(1, 24), photograph_scenes("train")
        cache = ImageCache()
        return Mixture([(0.5, SceneSource(scenes, cache)) for scenes in images])

    def _crop(self, dice: Dice) -> Tensor:
        hazy, clear = self._source.crop(self.settings.crop, dice)
        image = hazy if dice.chance(_DEGRADED) else clear
        return image if self.channels == _RGB else _with_channels(image, self.channels)

    def _psnr_to_teacher_db(self, model: nn.Module, batches: Sequence[Batch]) -> float:
        reference = self._reference
        parameter = next(model.parameters(), torch.zeros(()))
        values = []
        for batch in batches:
            with evaluating(model), torch.no_grad():
                expected = reference(batch.input).float()
                output = model(batch.input.to(parameter)).float().cpu()
            values += _psnr_db_of_each(output, expected)
        return sum(values) / len(values)


def input_channels(model: nn.Module, size: tuple[int, int] = (64, 64)) -> int:
    """Return how many channels a network takes: as many as its first convolution or weight.

    A network that rearranges its input before that takes others: if it does not run, 3, 1 and 4
    are tried.

    Args:
        model: Any network.
        size: Height and width of an input that it can take.

    Raises:
        ModelError: If it has no weight of two dimensions or more.

    >>> input_channels(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 1, 1)))
    4
    >>> input_channels(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 1)))
    3
    """
    first = _first_channels(model)
    usual = dict.fromkeys((first, _RGB, 1, 4))
    takes = (n for n in usual if tried(model, torch.zeros(1, n, *size)) is not None)
    return next(takes, first)


def _first_channels(model: nn.Module) -> int:
    for module in model.modules():
        channels = getattr(module, "in_channels", None)
        if isinstance(channels, int):
            return channels
    for parameter in model.parameters():
        if parameter.ndim > 1:
            return int(parameter.shape[1])
    message = f"{type(model).__name__} has no weights to infer its input from: give example=..."
    raise ModelError(message)


def _frozen_copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).cpu().eval().requires_grad_(requires_grad=False)


def _with_channels(image: Tensor, channels: int) -> Tensor:
    """Return a gray image for one channel, else the RGB channels again and again."""
    if channels == 1:
        return image.mean(dim=0, keepdim=True)
    return image[torch.arange(channels) % _RGB]


def _psnr_db_of_each(output: Tensor, expected: Tensor) -> list[float]:
    error = (output - expected).square().flatten(1).mean(dim=1)
    reach = expected.flatten(1).amax(dim=1) - expected.flatten(1).amin(dim=1)
    values = 10 * torch.log10(reach.clamp(min=1e-6).square() / error)
    return [min(_MOST_PSNR_DB, float(value)) for value in values]

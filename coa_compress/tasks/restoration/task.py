"""Any network from images to images as a task: what it should keep doing is in the images."""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch, Picture
from coa_compress.copying import copied, placed
from coa_compress.errors import DataError, ModelError
from coa_compress.profiling.modes import evaluating
from coa_compress.protocols import NamedLoss, Progress, no_progress
from coa_compress.tasks.batches import fixed_batches
from coa_compress.tasks.folder_use import restore_folder
from coa_compress.tasks.folders import BUILTIN, spaced
from coa_compress.tasks.restoration.channels import input_channels
from coa_compress.tasks.restoration.data import RestorationData
from coa_compress.tasks.restoration.fidelity import Fidelity
from coa_compress.tasks.restoration.folders import ImageFile, read_images
from coa_compress.tasks.restoration.settings import RestorationSettings
from coa_compress.tasks.tiling import sizes_of, suited, tried
from coa_compress.training.image_losses import charbonnier, frequency_l1, l1, psnr_loss, ssim_loss

_MOST_PSNR_DB = 100.0
_CALIBRATION_SEED = 104729
_VALIDATED_SIDE = 256
_SETTINGS_OF_USE = ("example_size", "tile", "colors", "border")
_RGB = 3
_IMAGE_NDIM = 4
_PICTURES = 2
_MOST_PICTURES = 6


class RestorationTask:
    """Keep what a network does to images, or what it should do to them.

    With pairs, the network learns from the targets and from the teacher, and is measured by PSNR
    and SSIM against the targets. Images alone, and the built-in ones (crops of photographs and
    scenes: as they are, hazy, noisy, blurred, dark or compressed), have no target: the network is
    held against a frozen copy of the teacher.

    Args:
        settings: Folders and sizes.
        seed: Seed of the fixed crops.
        model: The network; it is copied, never changed.
        example: One input, batch 1; None takes ``example_size`` and as many channels as the network
            takes.

    Raises:
        DataError: If a folder cannot be used with this network.
        ModelError: If there is no example, and the network has no weight to infer its input from.
    """

    Settings: ClassVar[type[RestorationSettings]] = RestorationSettings
    gate_labels: ClassVar[Mapping[str, str]] = MappingProxyType({})
    read_by: ClassVar[Mapping[str, Collection[str]]] = MappingProxyType(
        dict.fromkeys(("test", "max_test_images", "colors", "border"), ("measure",))
    )

    def __init__(
        self,
        settings: RestorationSettings | None = None,
        *,
        seed: int = 0,
        model: nn.Module | None = None,
        example: Tensor | None = None,
    ) -> None:
        self.settings = settings or RestorationSettings()
        self.seed = seed
        self._model = None if model is None else _frozen_copy(model)
        self._example = example
        if example is not None and example.ndim == _IMAGE_NDIM:
            self.channels = example.shape[1]
        else:
            size = self.settings.example_size
            self.channels = _RGB if model is None else input_channels(model, size)
        self.data = RestorationData(self.settings, seed=seed, channels=self.channels)
        if self._model is not None:
            _check_scale(self.data.images, self._model, self.channels)

    @classmethod
    def deployed(cls, settings: Mapping[str, Any], model: nn.Module) -> "RestorationTask":
        """Return the task that uses and judges a network as the settings of its recipe say.

        Args:
            settings: Those that count are taken: sizes, and how images are compared.
            model: The network.

        Raises:
            SettingError: If a value is out of range.
        """
        kept = {name: settings[name] for name in _SETTINGS_OF_USE if name in settings}
        return cls(RestorationSettings(**kept), model=model)

    def build_teacher(self) -> nn.Module:
        """Return a copy of the network, in evaluation mode, on the CPU.

        Raises:
            ModelError: If the task was made without a network.
        """
        return copied(self._reference).requires_grad_(requires_grad=True)

    @property
    def explanations(self) -> Mapping[str, str]:
        """What the measures mean, where their names do not say it."""
        words = {
            "psnr_to_teacher_db": "How close the output stays to that of the teacher, as "
            "peak signal-to-noise ratio on crops it was not trained on; higher is closer, "
            "100 dB means equal."
        }
        compared = self._fidelity.description
        if compared:
            words["psnr_db"] = f"Peak signal-to-noise ratio against the target, {compared}."
            words["ssim"] = f"Structural similarity to the target, {compared}; at most 1."
        return words

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of a student that has seen no image of its user."""
        if self.data.train.images or self.channels not in (1, _RGB):
            return ()
        return (
            "task.train: only built-in images were used; trained on images like those that it is "
            "for, pairs or images alone, a student can keep more of what its teacher does",
        )

    def fingerprint(self) -> dict[str, list[str]]:
        """Return the version of the built-in images and a digest of the files, by setting.

        Raises:
            DataError: If a file is gone.
        """
        return self.data.fingerprint()

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
        """Return random crops, with targets if there are; they depend on the generator alone."""
        return self.data.batch(batch_size, generator)

    @property
    def losses(self) -> Mapping[str, NamedLoss]:
        """Losses of any output, and ``ssim`` for images of at least 11 x 11 pixels."""
        return {
            "l1": l1,
            "charbonnier": charbonnier,
            "psnr": psnr_loss,
            "frequency": frequency_l1,
            "ssim": ssim_loss,
        }

    def validate(self, model: nn.Module) -> float:
        """Return the mean PSNR in dB: against targets, else against the teacher, on fixed images.

        Raises:
            ModelError: If the task was made without a network.
        """
        if not self.data.paired:
            return self._psnr_to_teacher_db(model, self.data.validation_crops)
        loaded = (
            self.data.reader.load(image, most=_VALIDATED_SIDE) for image in self.data.held_out
        )
        return self._fidelity.psnr_db(model, loaded)

    def measure(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return PSNR and SSIM against targets; where there are none, PSNR against the teacher."""
        table: dict[str, dict[str, float]] = {}
        for split, images in self.data.test_splits.items():
            if images[0].target is None:
                closeness = self._psnr_to_teacher_db(model, self.data.middles(images))
                table.setdefault("psnr_to_teacher_db", {})[split] = closeness
                continue
            loaded = map(self.data.reader.load, images)
            found = self._fidelity.measure(model, loaded, no_progress, len(images))
            for name, value in found.items():
                table.setdefault(name, {})[split] = value
        if self.data.builtin_test:
            closeness = self._psnr_to_teacher_db(model, self.data.builtin_test)
            table.setdefault("psnr_to_teacher_db", {})[BUILTIN] = closeness
        return table

    def pictures(self, models: Mapping[str, nn.Module]) -> Sequence[Picture]:
        """Return rows of images: the input, the output of each model by name, the target.

        Nothing where the network does not make images of images.
        """
        if not self._makes_images:
            return ()
        shown: list[tuple[str, Tensor, Tensor | None]] = []
        for split, images in self.data.test_splits.items():
            chosen = spaced(images, _PICTURES)
            shown += [(f"{split}: {i.name}", *self.data.reader.load(i)) for i in chosen]
        for batch in self.data.builtin_test[:1]:
            shown += [(f"{BUILTIN}: {i + 1}", crop, None) for i, crop in enumerate(batch.input)]
        return [
            self._fidelity.picture(title, models, given, target)
            for title, given, target in shown[:_MOST_PICTURES]
        ]

    def apply_folder(
        self, model: nn.Module, source: Path, out: Path, progress: Progress
    ) -> Sequence[Path]:
        """Run a network from images to images on every image in a folder; return the PNG files.

        Raises:
            DataError: If an image cannot be read or a file is in the way; nothing is written then.
            ModelError: If the network does not return an image whose size is a whole multiple of
                that of its input.
        """
        tile, gray = self.settings.tile, self.data.reader.gray
        return restore_folder(model, source, out, progress, tile=tile, gray=gray)

    def evaluate_folder(
        self, model: nn.Module, data: Path, progress: Progress
    ) -> dict[str, dict[str, float]]:
        """Return PSNR and SSIM on a folder of pairs, whole images: measure, then split, then value.

        Raises:
            DataError: If the folder holds no pairs, or one of them does not suit the network.
        """
        images = read_images(data)
        if images[0].target is None:
            message = f"no pairs in {data}: only images without target; "
            message += "expected input/ and target/"
            raise DataError(message)
        _check_scale(images, model, self.channels)
        loaded = map(self.data.reader.load, images)
        found = self._fidelity.measure(model, loaded, progress, len(images))
        return {name: {data.resolve().name: value} for name, value in found.items()}

    @property
    def _reference(self) -> nn.Module:
        if self._model is None:
            message = "restoration has no network: give --model, or Compressor(model)"
            raise ModelError(message)
        return self._model

    @cached_property
    def _calibration(self) -> tuple[Batch, ...]:
        count, seed = self.settings.calibration_images, _CALIBRATION_SEED + self.seed
        return fixed_batches(self.training_batch, count, seed=seed)

    @property
    def _fidelity(self) -> Fidelity:
        settings = self.settings
        return Fidelity(settings.tile, settings.colors, settings.border)

    @cached_property
    def _makes_images(self) -> bool:
        output = tried(self._reference, self.example_input())
        if not isinstance(output, Tensor) or output.ndim != _IMAGE_NDIM:
            return False
        return {self.channels, output.shape[1]} <= {1, _RGB}

    def _psnr_to_teacher_db(self, model: nn.Module, batches: Sequence[Batch]) -> float:
        reference = self._reference
        values = []
        for batch in batches:
            with evaluating(model), torch.no_grad():
                expected = reference(batch.input).float()
                output = model(suited(batch.input, model)).float().cpu()
            values += _psnr_db_of_each(output, expected)
        return sum(values) / len(values)


def _check_scale(images: Sequence[ImageFile], model: nn.Module, channels: int) -> None:
    """Check that a network makes images of the size of their targets.

    Raises:
        DataError: If it does not.
    """
    paired = [image for image in images if image.target is not None]
    if not paired:
        return
    scale = sizes_of(model, channels=channels).scale
    wrong = next((image for image in paired if image.scale != scale), None)
    if wrong is not None:
        message = (
            f"{type(model).__name__} makes images {scale} times as large, and {wrong.target} is "
            f"{wrong.scale} times as large as its input: give pairs of one scale"
        )
        raise DataError(message)


def _frozen_copy(model: nn.Module) -> nn.Module:
    return placed(copied(model), "cpu").eval().requires_grad_(requires_grad=False)


def _psnr_db_of_each(output: Tensor, expected: Tensor) -> list[float]:
    error = (output - expected).square().flatten(1).mean(dim=1)
    reach = expected.flatten(1).amax(dim=1) - expected.flatten(1).amin(dim=1)
    values = 10 * torch.log10(reach.clamp(min=1e-6).square() / error)
    return [min(_MOST_PSNR_DB, float(value)) for value in values]

"""Single-image dehazing as a task of coa-compress."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch, Picture, Reference
from coa_compress.checkpoint import load_weights_
from coa_compress.errors import WeightsError
from coa_compress.gate import DomainMeasures
from coa_compress.protocols import NamedLoss, Progress, PseudoLabel, no_progress
from coa_compress.tasks.batches import fixed_batches
from coa_compress.tasks.dehazing.data import DehazingData, splits_of
from coa_compress.tasks.dehazing.folders import beside_truth, read_folder
from coa_compress.tasks.dehazing.guidance.labels import LABELS
from coa_compress.tasks.dehazing.guidance.priors import PRIORS
from coa_compress.tasks.dehazing.guidance.rehazing import haze_again
from coa_compress.tasks.dehazing.guidance.words import text_priors
from coa_compress.tasks.dehazing.judging import (
    Judge,
    judge_domain,
    measure_real,
    measure_splits,
)
from coa_compress.tasks.dehazing.losses import RESTORATION_LOSSES
from coa_compress.tasks.dehazing.monitoring import monitor
from coa_compress.tasks.dehazing.networks import HazeUNet
from coa_compress.tasks.dehazing.no_reference import no_reference
from coa_compress.tasks.dehazing.references import known_networks
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.showing import show_models
from coa_compress.tasks.dehazing.sources import PhotographSource
from coa_compress.tasks.dice import Dice
from coa_compress.tasks.folder_use import restore_folder

_PACKAGE = "coa_compress.tasks.dehazing"
_CALIBRATION_SEED = 7919


class DehazingTask:
    """Remove haze from single images.

    Args:
        settings: Where teacher and images come from.
        seed: Seed of the calibration crops and of an untrained teacher.

    Raises:
        DataError: If a folder or a file of parameters is missing or unusable.
    """

    Settings: ClassVar[type[DehazingSettings]] = DehazingSettings
    gate_labels: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "fade": "FADE on real photographs",
            "dark_channel_density": "Dark channel density on real photographs",
            "niqe": "NIQE on real photographs",
            "skill": "PSNR on validation pairs (dB)",
        }
    )

    read_by: ClassVar[Mapping[str, Collection[str]]] = MappingProxyType(
        {
            "real": ("adapt", "measure"),
            "clip": ("adapt",),
            "clip_prompts": ("adapt",),
            "fade_parameters": ("adapt", "measure"),
            "niqe_parameters": ("adapt", "measure"),
            "test": ("measure",),
            "max_test_images": ("measure",),
        }
    )

    def __init__(self, settings: DehazingSettings | None = None, *, seed: int = 0) -> None:
        self.settings = settings or DehazingSettings()
        self.seed = seed
        self.data = DehazingData(self.settings)
        self.no_reference = no_reference(
            self.settings.fade_parameters, self.settings.niqe_parameters
        )

    @property
    def explanations(self) -> Mapping[str, str]:
        """What the measures without truth mean, and whose parameters they take."""
        return self.no_reference.explanations

    def build_teacher(self) -> nn.Module:
        """Return the trained teacher, in evaluation mode, on the CPU.

        Raises:
            WeightsError: If the weight file is missing or of another network.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            teacher = HazeUNet()
        name = self.settings.teacher
        if name == "builtin":
            with as_file(files(_PACKAGE) / "weights" / "teacher.safetensors") as path:
                _load(teacher, path)
        elif name != "random":
            _load(teacher, Path(name).expanduser())
        return teacher.eval()

    def teacher_record(self) -> tuple[str, dict[str, object]]:
        """Return the factory of the teacher and its arguments, to build it again."""
        return f"{HazeUNet.__module__}:{HazeUNet.__qualname__}", {}

    def fingerprint(self) -> dict[str, list[str]]:
        """Return the version of the built-in images and a digest of the files, by setting.

        The digest covers path, size and time of change of each file; no file is opened. The
        parameters of the measures count by their values.

        Raises:
            DataError: If a file is gone.
        """
        return {**self.data.fingerprint(), "fade_parameters": [self.no_reference.digest()]}

    def example_input(self) -> Tensor:
        """Return one random input, shape ``(1, 3, *example_size)``, values in ``[0, 1]``."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(1, 3, *self.settings.example_size, generator=generator)

    def calibration_batches(self) -> Sequence[Batch]:
        """Return a few fixed batches of training crops for scoring and refitting."""
        return self._calibration

    def training_batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Return random hazy crops and their truths; depends on nothing but the generator."""
        dice = Dice(generator)
        crops = [self.data.training.crop(self.settings.crop, dice) for _ in range(batch_size)]
        hazy, clear = zip(*crops, strict=True)
        return Batch(torch.stack(hazy), torch.stack(clear))

    @property
    def losses(self) -> Mapping[str, NamedLoss]:
        """``l1``, ``ssim``, ``psnr`` and others of an output against its target."""
        return RESTORATION_LOSSES

    def validate(self, model: nn.Module) -> float:
        """Return the mean PSNR in dB on whole validation images; higher is better."""
        return self._judge(model).mean_psnr_db(self.data.validation)

    def measure(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return PSNR, SSIM, FADE, dark-channel density and NIQE on every test split."""
        judge = self._judge(model)
        return measure_splits(judge, self.data.test, self.data.test_real, no_progress)

    def real_batch(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Return random crops of real hazy images; depends on nothing but the generator."""
        dice = Dice(generator)
        source = self.data.adaptation
        return torch.stack([source.crop(self.settings.crop, dice) for _ in range(batch_size)])

    @property
    def guidance(self) -> Mapping[str, NamedLoss]:
        """The priors of an output on its real input: physical ones, and words where asked for."""
        return self._guidance

    @property
    def pseudo_labels(self) -> Mapping[str, PseudoLabel]:
        """The makers of labels that go further than the output of a network."""
        return LABELS

    def degrade(self, clear: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
        """Return images under random haze of the kind that was seen in their real inputs."""
        return haze_again(clear, real, generator)

    def monitor(self, reference: nn.Module) -> Callable[[nn.Module], float]:
        """Return a judge of networks without truth, on real images that are used for nothing else.

        Args:
            reference: The student before adaptation, which scores 0; higher is better.
        """
        return monitor(self._real_measures, reference)

    def domain_measures(self, model: nn.Module) -> DomainMeasures:
        """Return the haze and NIQE of each held-out real image, and the PSNR of each pair."""
        return judge_domain(self._judge(model), self.data.gate, self.data.validation)

    def pictures(self, models: Mapping[str, nn.Module]) -> Sequence[Picture]:
        """Return rows of images: hazy, the output of each model by name, the truth."""
        return show_models(models, self.data, tile=self.settings.tile)

    def references(self) -> Sequence[Reference]:
        """Return the networks of the committed benchmarks that saw the same test images."""
        return known_networks(self.data.test_digests())

    def apply_folder(
        self, model: nn.Module, source: Path, out: Path, progress: Progress
    ) -> Sequence[Path]:
        """Dehaze every image in a folder; return the PNG files written.

        Raises:
            DataError: If an image cannot be read or a file is in the way; nothing is written then.
        """
        return restore_folder(model, source, out, progress, tile=self.settings.tile)

    def evaluate_folder(
        self, model: nn.Module, data: Path, progress: Progress
    ) -> dict[str, dict[str, float]]:
        """Return measurements on a folder of pairs: measure, then split, then value.

        Raises:
            DataError: If the folder holds no pairs, or one of them is unusable.
        """
        found = beside_truth(read_folder(data), data)
        splits = splits_of(found, self.data.cache)
        photographs = [path for contents in found for path in contents.photographs]
        real = PhotographSource(photographs, self.data.cache)
        return measure_splits(self._judge(model), splits, real, progress)

    @cached_property
    def _guidance(self) -> Mapping[str, NamedLoss]:
        clip, prompts = self.settings.clip, self.settings.clip_prompts
        return {**PRIORS, **text_priors(clip, prompts)} if clip else PRIORS

    def _real_measures(self, model: nn.Module) -> dict[str, float]:
        measured = measure_real(self._judge(model), self.data.stopping)
        return {**measured, "psnr_db": self.validate(model)}

    @cached_property
    def _calibration(self) -> tuple[Batch, ...]:
        count, seed = self.settings.calibration_images, _CALIBRATION_SEED + self.seed
        return fixed_batches(self.training_batch, count, seed=seed)

    def _judge(self, model: nn.Module) -> Judge:
        return Judge(model, self.settings.tile, self.no_reference)


def _load(teacher: nn.Module, path: Path) -> None:
    if not path.is_file():
        message = f"no weight file {path}: give task.teacher an existing file, or random"
        raise WeightsError(message)
    load_weights_(teacher, path)

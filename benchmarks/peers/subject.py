"""What every method of a comparison is given: a teacher, images and a loss."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.networks.published import load_published
from coa_compress.artifacts import Batch, Cut
from coa_compress.errors import DataError
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exported import ExportedStructure
from coa_compress.tasks.dehazing.judging import Judge
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.sources import Example
from coa_compress.tasks.dehazing.task import DehazingTask
from coa_compress.tasks.measures import capped_psnr_db

TEACHERS = ("builtin", "gcanet", "dehazeformer_t")
"""Names of the teachers."""

_TILE = 2048
_SCENES = ("clear", "depth", "index.csv")
_PUBLISHED_SIZE = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which images are used.

    Args:
        data: Folder with ``train/``, ``test/`` and ``weights/``, or None for built-in images.
        images: Most test images of each split.
        splits: Folders in ``test/`` that are measured beside the built-in split.
        crop: Test images are cut to a square of this side in their middle; None for whole images.
        calibration: How many crops all methods calibrate on.
        size: Side of the input that MACs and latency are counted for; None for the teacher's own.
    """

    data: Path | None
    images: int = 12
    splits: tuple[str, ...] = ("sots_indoor", "sots_outdoor")
    crop: int | None = None
    calibration: int = 64
    size: int | None = None


@dataclass(frozen=True)
class Subject:
    """A teacher, the images, and how networks are judged.

    Args:
        name: One of ``TEACHERS``.
        seed: Seed of the calibration crops, of random scores and of the distillation.
        teacher: In evaluation mode, on the CPU; never changed.
        task: Gives training batches.
        example: The input that MACs are counted for.
        batches: What every method calibrates on.
        tests: Examples by split.
        outputs: Modules that write the output; other libraries must be told to leave them whole.
        shuffled: Modules before a pixel shuffle or a split into heads, which other libraries cut
            into pieces that do not fit unless they are told to leave them whole too.
    """

    name: str
    seed: int
    teacher: nn.Module
    task: DehazingTask
    example: Tensor
    batches: tuple[Batch, ...]
    tests: Mapping[str, Sequence[Example]]
    outputs: tuple[str, ...]
    shuffled: tuple[str, ...]

    @cached_property
    def loops(self) -> dict[tuple[str, ...], Any]:
        """What a method keeps for the next budget, by a name of its own."""
        return {}

    @cached_property
    def structure(self) -> ExportedStructure:
        """Our analysis of the teacher, made once."""
        return analyze(self.teacher, self.example)

    @property
    def digest(self) -> str:
        """Twelve digits that differ once a weight of the teacher differs."""
        digest = hashlib.sha256()
        for name, tensor in self.teacher.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    @cached_property
    def teacher_outputs(self) -> dict[str, list[Tensor]]:
        """The teacher's output on every test image, by split."""
        judge = Judge(self.teacher, _TILE)
        return {
            name: [judge.restore(example.load()[0]) for example in examples]
            for name, examples in self.tests.items()
        }

    def psnr_db(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return mean PSNR in dB by split: against the ``truth`` and the ``teacher``'s output."""
        judge = Judge(model, _TILE)
        found = {}
        for name, examples in self.tests.items():
            truth, teacher = [], []
            for example, wanted in zip(examples, self.teacher_outputs[name], strict=True):
                hazy, clear = example.load()
                output = judge.restore(hazy)
                truth.append(capped_psnr_db(output, clear))
                teacher.append(capped_psnr_db(output, wanted))
            found[name] = {"truth": fmean(truth), "teacher": fmean(teacher)}
        return found


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a method made of a teacher.

    Args:
        student: A new network.
        cut: Which positions of which tensors it kept, or None where that cannot be told.
        refitted: Whether our refit belongs to the method.
        note: What a reader of the row must know.
    """

    student: nn.Module
    cut: Cut | None
    refitted: bool = False
    note: str = ""


def loss(output: Tensor, batch: Batch) -> Tensor:
    """Return the mean squared error against the truth: what every scorer is given."""
    if batch.target is None:
        return output.square().mean()
    return torch.nn.functional.mse_loss(output, batch.target)


def load_subject(name: str, choice: Choice, stack: ExitStack, *, seed: int = 0) -> Subject:
    """Return a teacher with its images.

    The published teachers were trained indoors on scenes with depth: they are calibrated on the
    scenes of ``DATA/train``, without its photographs of real haze. The built-in one is calibrated
    on the built-in images.

    Args:
        name: One of ``TEACHERS``.
        choice: Which images.
        stack: Keeps temporary folders until it is closed.
        seed: Seed of the calibration crops and of what a method draws.

    Raises:
        DataError: If a published teacher is asked for without a data folder, or it is unusable.
    """
    if name != "builtin" and choice.data is None:
        message = f"teacher {name!r} needs its weights and images: give their folder by --data"
        raise DataError(message)
    train = "builtin" if name == "builtin" else str(_scenes(choice.data, stack))
    task = DehazingTask(_settings(name, choice, train), seed=seed)
    teacher = task.build_teacher() if name == "builtin" else load_published(name, _given(choice))
    tests = {
        split: tuple(_middle(example, choice.crop) for example in examples)
        for split, examples in task.data.test.items()
    }
    return subject_of(name, task, teacher, seed=seed, tests=tests)


def subject_of(
    name: str,
    task: DehazingTask,
    teacher: nn.Module,
    *,
    seed: int,
    tests: Mapping[str, Sequence[Example]],
) -> Subject:
    """Return a teacher that is calibrated on the images of a task; see ``Subject``."""
    outputs, shuffled = _left_whole(name)
    return Subject(
        name=name,
        seed=seed,
        teacher=teacher,
        task=task,
        example=task.example_input(),
        batches=tuple(task.calibration_batches()),
        tests=tests,
        outputs=outputs,
        shuffled=shuffled,
    )


def _settings(name: str, choice: Choice, train: str) -> DehazingSettings:
    folders = () if choice.data is None else tuple(choice.splits)
    tests = tuple(str(_given(choice) / "test" / split) for split in folders)
    side = choice.size or (256 if name == "builtin" else _PUBLISHED_SIZE)
    return DehazingSettings(
        train=train,
        test=(*(("builtin",) if name == "builtin" else ()), *tests),
        max_test_images=choice.images,
        calibration_images=choice.calibration,
        example_size=(side, side),
    )


def _given(choice: Choice) -> Path:
    if choice.data is None:
        message = "no data folder: give one by --data"
        raise DataError(message)
    return choice.data


def _scenes(data: Path | None, stack: ExitStack) -> Path:
    """Return a folder that shows only the scenes of the training data."""
    folder = Path(stack.enter_context(TemporaryDirectory()))
    for name in _SCENES:
        source = (data or Path()) / "train" / name
        if not source.exists():
            message = f"no {source}: give a data folder with clear/, depth/ and index.csv in train/"
            raise DataError(message)
        (folder / name).symlink_to(source.resolve())
    return folder


def _left_whole(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if name == "gcanet":
        return ("deconv1",), ("gate",)
    if name == "dehazeformer_t":
        splits = [f"layer2.blocks.{i}.attn.QK" for i in (2, 3)]
        splits += [f"layer3.blocks.{i}.attn.QK" for i in range(4)]
        return ("patch_unembed.proj.0",), ("patch_split1.proj.0", "patch_split2.proj.0", *splits)
    return ("head",), ("up.0.expand", "up.1.expand")


def _middle(example: Example, side: int | None) -> Example:
    if side is None:
        return example

    def load() -> tuple[Tensor, Tensor]:
        hazy, clear = example.load()
        top, left = ((size - side) // 2 for size in hazy.shape[-2:])
        rows, columns = slice(top, top + side), slice(left, left + side)
        return hazy[:, rows, columns], clear[:, rows, columns]

    return replace(example, load=load)

"""The rows of the comparison: how they are made, and the file that keeps them."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.methods import attempt
from benchmarks.peers.subject import Pruned, Subject
from benchmarks.records import new_record, read_record, write_record
from coa_compress.errors import DataError
from coa_compress.profiling.counting import count_macs, count_params
from coa_compress.profiling.timing import measure_latency_ms
from coa_compress.refit.closed_form import refit
from coa_compress.stages.refit import RefitSettings
from coa_compress.training.loop import StepLosses, TrainingJob, fit
from coa_compress.training.settings import TrainingSettings

_BATCH = 8
_TRUTH = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """The file of a comparison, written after each row.

    Args:
        path: Where it lies.
        content: What it holds.
    """

    path: Path
    content: dict[str, Any]

    @classmethod
    def open(
        cls, path: Path, settings: Mapping[str, Any], arguments: Sequence[str] | None
    ) -> "Record":
        """Return the record of a file, or a new one where there is no file.

        Args:
            path: The file.
            settings: What rows of one file have in common.
            arguments: The command line, or None for that of this process.

        Raises:
            DataError: If the file holds rows of other settings.
        """
        wanted = {name: _plain(value) for name, value in settings.items()}
        content = {**new_record("prune", arguments), "settings": wanted, "teachers": {}, "rows": []}
        if path.exists():
            found = read_record(path)
            if found["settings"] != wanted:
                message = f"{path} holds rows of {found['settings']}, not of {wanted}: "
                message += "give another --json"
                raise DataError(message)
            content |= {"teachers": found["teachers"], "rows": found["rows"]}
            content["commands"] = [*found.get("commands", [found["command"]]), content["command"]]
        return cls(path, content)

    def note_teacher(self, subject: Subject) -> None:
        """Write what the teacher reaches; forget the rows of one with other weights."""
        known = self.content["teachers"].get(subject.name, {})
        if known.get("digest") == subject.digest:
            return
        rows = self.content["rows"]
        self.content["rows"] = [row for row in rows if row["teacher"] != subject.name]
        self.content["teachers"][subject.name] = {
            "digest": subject.digest,
            "params": count_params(subject.teacher),
            "macs": count_macs(subject.teacher, subject.example),
            "input": list(subject.example.shape[-2:]),
            "psnr": subject.psnr_db(subject.teacher),
            "images": {name: len(examples) for name, examples in subject.tests.items()},
        }
        self._write()

    def find(self, subject: Subject, keep: float, name: str) -> dict[str, Any] | None:
        """Return a row that is there."""
        key = (subject.name, keep, name, subject.seed)
        return next((row for row in self.content["rows"] if _key(row) == key), None)

    def put(self, row: dict[str, Any]) -> None:
        """Write a row, in the place of one with the same key."""
        rows = [other for other in self.content["rows"] if _key(other) != _key(row)]
        self.content["rows"] = [*rows, row]
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_record(self.path, self.content)


def first_row(subject: Subject, keep: float, name: str, *, limit_s: float) -> dict[str, Any]:
    """Return a row without distillation.

    Args:
        subject: What is pruned.
        keep: Fraction of the MACs that may be kept.
        name: The method.
        limit_s: Seconds a peer may take.
    """
    row: dict[str, Any] = {
        "teacher": subject.name,
        "keep_macs": keep,
        "method": name,
        "seed": subject.seed,
        "error": None,
        "psnr_distilled": {},
    }
    begin = time.perf_counter()
    pruned = attempt(name, subject, keep, limit_s=limit_s)
    row["prune_seconds"] = round(time.perf_counter() - begin, 1)
    if isinstance(pruned, str):
        return row | {"error": pruned}
    fitted = _refitted(subject, pruned)
    return row | {
        "note": pruned.note,
        "refitted": pruned.refitted,
        "macs_kept": _kept(count_macs, subject, pruned.student),
        "params_kept": count_params(pruned.student) / count_params(subject.teacher),
        "latency": _latency(subject, pruned.student),
        "psnr_one_shot": subject.psnr_db(pruned.student),
        "psnr_refitted": None if fitted is None else subject.psnr_db(fitted),
    }


def student_of(subject: Subject, row: Mapping[str, Any]) -> nn.Module:
    """Return the student of a row, made again, as its method hands it to the distillation.

    Raises:
        DataError: If the method fails now.
    """
    pruned = attempt(row["method"], subject, row["keep_macs"], limit_s=float("inf"))
    if isinstance(pruned, str):
        message = f"{row['method']} fails on {subject.name} now: {pruned}"
        raise DataError(message)
    fitted = _refitted(subject, pruned) if pruned.refitted else None
    return pruned.student if fitted is None else fitted


def distilled(
    subject: Subject, student: nn.Module, steps: int, *, folder: Path
) -> dict[str, dict[str, float]]:
    """Return the PSNR of a student, as ``Subject.psnr_db`` does, after some distillation.

    The loss is the L1 distance to the teacher's output and a fifth of that to the truth; all
    methods see the same batches.

    Args:
        subject: Gives teacher and batches.
        student: Unchanged.
        steps: How many.
        folder: Holds the checkpoint that an interrupted distillation goes on from; removed at the
            end.
    """
    job = TrainingJob(
        name="distill",
        model=student,
        step_losses=_step_losses(subject),
        weights={"teacher": 1.0, "truth": _TRUTH},
    )
    settings = TrainingSettings(steps=steps, batch_size=_BATCH)
    folder.mkdir(parents=True, exist_ok=True)
    result = fit(job, settings, seed=subject.seed, device="cpu", folder=folder)
    shutil.rmtree(folder)
    return subject.psnr_db(result.model)


def _step_losses(subject: Subject) -> StepLosses:
    def step_losses(
        model: nn.Module, _average: nn.Module, generator: torch.Generator
    ) -> dict[str, Tensor]:
        batch = subject.task.training_batch(_BATCH, generator)
        with torch.no_grad():
            label = subject.teacher(batch.input)
        output = model(batch.input)
        target = label if batch.target is None else batch.target
        return {
            "teacher": nn.functional.l1_loss(output, label),
            "truth": nn.functional.l1_loss(output, target),
        }

    return step_losses


def _refitted(subject: Subject, pruned: Pruned) -> nn.Module | None:
    if pruned.cut is None:
        return None
    settings = RefitSettings()
    return refit(
        subject.teacher,
        pruned.cut,
        subject.batches,
        ridge=settings.ridge,
        positions=settings.positions,
    ).student


def _latency(subject: Subject, student: nn.Module) -> float:
    found = measure_latency_ms(
        {"teacher": subject.teacher, "student": student},
        subject.example,
        rounds=10,
        warmup=2,
        max_seconds=15,
    )
    return found["student"].median_ms / found["teacher"].median_ms


def _kept(count: Any, subject: Subject, student: nn.Module) -> float:
    return float(count(student, subject.example) / count(subject.teacher, subject.example))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (row["teacher"], row["keep_macs"], row["method"], row["seed"])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

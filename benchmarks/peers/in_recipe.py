"""Students of other libraries, distilled and measured as a recipe does it with its own."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.peers.methods import attempt
from benchmarks.peers.subject import subject_of
from coa_compress.atomic import write_atomic
from coa_compress.compressor import Compressor
from coa_compress.errors import SettingError
from coa_compress.protocols import SilentObserver
from coa_compress.stages.distill import Distill, DistillSettings
from coa_compress.stages.measure import Measure, MeasureSettings
from coa_compress.stages.state import Context, State
from coa_compress.tasks.dehazing.task import DehazingTask

_SECONDS = 3000.0


def recipe_row(name: str, keep: float, compressor: Compressor, file: Path) -> dict[str, Any]:
    """Return what a method's student costs and reaches after the distillation of a recipe.

    Args:
        name: The method, as in `benchmarks.prune`.
        keep: Fraction of the MACs that may be kept.
        compressor: The recipe, for the built-in teacher.
        file: Where the row is kept; it is read where it exists.

    Returns:
        ``teacher`` and ``student``, each with its costs and measures, and ``note``; or ``error``.

    Raises:
        SettingError: If the recipe is for another teacher, or does not distill.
    """
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    row = _made(name, keep, compressor)
    write_atomic(file, json.dumps(row, indent=1))
    return row


def _made(name: str, keep: float, compressor: Compressor) -> dict[str, Any]:
    task, settings = compressor.task, compressor.recipe.stages.get("distill")
    if not isinstance(task, DehazingTask) or task.settings.teacher != "builtin":
        message = "other libraries were fitted to the built-in teacher: take a recipe that names it"
        raise SettingError(message)
    if not isinstance(settings, DistillSettings):
        message = "the recipe has no stage 'distill', which the students of others go through too"
        raise SettingError(message)
    teacher, seed = task.build_teacher(), compressor.recipe.seed
    subject = subject_of("builtin", task, teacher, seed=seed, tests={})
    pruned = attempt(name, subject, keep, limit_s=_SECONDS)
    if isinstance(pruned, str):
        return {"error": pruned}
    if pruned.cut is None:
        return {"error": "which channels it kept, which the distillation must know, is unknown"}
    context = Context(
        task=task,
        seed=seed,
        device=compressor.device,
        observer=SilentObserver(),
        structure=_not_asked_for,
        example=task.example_input(),
    )
    state = State(teacher=teacher, cut=pruned.cut, student=pruned.student)
    state = Distill(settings).run(state, context)
    measured = Measure(compressor.recipe.stages.get("measure", MeasureSettings()))
    roles = measured.run(state, context).measurements
    return {"note": pruned.note, **{role: dict(roles[role]) for role in ("teacher", "student")}}


def _not_asked_for(_teacher: nn.Module) -> Any:
    message = "tap_choice: expected_loss needs scores, which students of others do not have"
    raise SettingError(message)

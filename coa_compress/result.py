"""What a run returns, and the report it writes."""

import shutil
import tempfile
import time
import warnings
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.copying import attribute_tensors
from coa_compress.errors import FOREIGN_ERRORS, CoaWarning
from coa_compress.hooks import assigned_attributes
from coa_compress.protocols import Comparable, Explained, Showable, Task
from coa_compress.provenance import commit, machine, versions
from coa_compress.recipe.assembly import plain_recipe
from coa_compress.recipe.files import dump_recipe, recipe_digest
from coa_compress.recipe.schema import Recipe
from coa_compress.report.content import Report, describe_allocation, describe_gate
from coa_compress.report.reading import report_of
from coa_compress.report.summary import headline
from coa_compress.report.write import read_report, write_report
from coa_compress.stages.files import load_pictures
from coa_compress.stages.measure import Measure
from coa_compress.stages.pipeline import Outcome
from coa_compress.stages.state import Context, State
from coa_compress.structure.graph_student import GraphStudent
from coa_compress.students import (
    StudentRecord,
    digest_settings,
    graph_record,
    save_student,
    source_of,
)


class TemporaryFolder:
    """A folder that is removed, without a word, once nobody holds this object any more.

    >>> folder = TemporaryFolder()
    >>> path = folder.path
    >>> path.is_dir()
    True
    >>> del folder
    >>> path.exists()
    False
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="coa-compress-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """A finished run.

    Args:
        student: The final network in evaluation mode: adapted where the gate accepted it, else
            distilled; the teacher itself when nothing was compressed. It lies where the model that
            was given lay, on the CPU if none was.
        teacher: The network it was made from, in the same place.
        report: Everything that was measured.
        report_path: The report as a web page.
        record: How the student follows from its teacher.
        summary: The run in one sentence.
        folder: Keeps a temporary run folder, and the report in it, as long as this result.
    """

    student: nn.Module
    teacher: nn.Module
    report: Report
    report_path: Path
    record: StudentRecord
    summary: str
    folder: TemporaryFolder | None = field(default=None, repr=False)

    def save(self, folder: Path | str) -> Path:
        """Write the student as ``student.json`` and ``student.safetensors``; return the folder.

        Args:
            folder: Made when absent.

        Raises:
            WeightsError: If it cannot be written.
        """
        save_student(Path(folder), self.student, record=self.record)
        return Path(folder)


def final_network(state: State) -> nn.Module:
    """Return the network that a run is about."""
    made = (state.adapted, state.student, state.teacher)
    # not "or": a network that defines __len__ may be false
    return next(network for network in made if network is not None)


def student_record(
    state: State,
    recipe: Recipe,
    factory: tuple[str, dict[str, Any]],
    *,
    task: Mapping[str, Any],
    example: Tensor,
) -> StudentRecord:
    """Return how the student of a run follows from its teacher.

    Args:
        state: The end of the run.
        recipe: What was asked for.
        factory: Class of the teacher as ``package.module:Class``, and its arguments.
        task: Name and settings of the task, JSON values.
        example: One input, batch 1.
    """
    network = final_network(state).eval()
    assigned, attributes = _attributes(network, example.to(next(network.parameters()).device))
    teacher, student = state.teacher.state_dict(), network.state_dict()
    shapes = {n: list(t.shape) for n, t in student.items() if t.shape != teacher[n].shape}
    kept = {} if state.allocation is None else state.allocation.kept
    return StudentRecord(
        factory=factory[0],
        arguments=factory[1],
        kept={name: channels.tolist() for name, channels in kept.items()},
        patches=() if state.cut is None else state.cut.patches,
        shapes=shapes,
        task=task,
        recipe_digest=recipe_digest(recipe),
        versions=versions(),
        settings_sha256=digest_settings(network, without=assigned),
        assigned=tuple(sorted(assigned)),
        attributes=tuple(sorted(attributes)),
        graph=graph_record(network),
    )


@torch.no_grad()
def _attributes(network: nn.Module, example: Tensor) -> tuple[set[str], set[str]]:
    """Return the attributes that passes give new values, and those that hold lasting tensors.

    What a pass puts there is lasting where an input of another size leaves it as it is.
    """
    source = source_of(network)
    before = after = attribute_tensors(source)
    with assigned_attributes(network) as assigned:
        network(example)
        if not isinstance(network, GraphStudent):
            before = attribute_tensors(network)
            with suppress(*FOREIGN_ERRORS):
                network(torch.cat([example, example], dim=-1))
            after = attribute_tensors(network)
            network(example)
    lasting = {name for name in before if name in after and _same(before[name], after[name])}
    return assigned, lasting


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def make_report(
    recipe: Recipe, task: Task, outcome: Outcome, context: Context, *, started: float
) -> Report:
    """Return the report of a finished run.

    Args:
        recipe: As resolved.
        task: Gives words for what it measures, where it has any.
        outcome: The end of the pipeline.
        context: What the stages were given.
        started: Seconds since the epoch.
    """
    state = outcome.state
    labels = task.gate_labels if isinstance(task, Explained) else None
    gate = None if state.gate is None else describe_gate(state.gate, labels=labels)
    allocation: Mapping[str, Any] = {}
    if state.allocation is not None and state.budget is not None:
        # after several rounds the scores are of what the round before has left
        scores = state.scores if state.before is None else None
        allocation = describe_allocation(state.allocation, state.budget, scores=scores)
    return Report(
        name=recipe.name,
        title=f"{recipe.name}: teacher and student",
        measurements=state.measurements,
        allocation=allocation,
        gate=gate,
        histories=state.histories,
        pictures=state.pictures if isinstance(task, Showable) else (),
        recipe=plain_recipe(recipe),
        recipe_text=dump_recipe(recipe),
        provenance=_provenance(recipe, context, started=started),
        stage_seconds=outcome.seconds,
        notes=tuple(dict.fromkeys((*state.notes, *outcome.warnings))),
        explanations=dict(task.explanations) if isinstance(task, Explained) else {},
        layer_times=state.layer_times,
        references=task.references() if isinstance(task, Comparable) else (),
    )


def summary_of(report: Report) -> str:
    """Return the run in one sentence."""
    return headline(report)


def render_again(run: Path) -> Path:
    """Write the report of a finished run anew, from its ``report.json`` and its pictures.

    Args:
        run: The run folder.

    Returns:
        The path of the web page.

    Raises:
        DataError: If there is no report, or it cannot be read.
    """
    values = read_report(run)
    folders = sorted(run.glob(f"[0-9][0-9]_{Measure.name}"))
    pictures = load_pictures(folders[0]) if folders and values["pictures"] else ()
    if values["pictures"] and not pictures:
        message = f"{run} has no folder of stage {Measure.name!r}: the pictures are left out"
        warnings.warn(message, CoaWarning, stacklevel=2)
    return write_report(report_of(values, pictures), run)


def _provenance(recipe: Recipe, context: Context, *, started: float) -> dict[str, Any]:
    def stamp(seconds: float) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

    return {
        "versions": versions(),
        **machine(context.device),
        "seed": recipe.seed,
        "commit": commit(),
        "example_size": list(context.example.shape),
        "counter": "dispatcher, multiply-accumulates, decimal",
        "started": stamp(started),
        "finished": stamp(time.time()),
    }

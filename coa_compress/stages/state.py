"""What a run knows after each stage, and what every stage is given."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from coa_compress.artifacts import (
    Allocation,
    Batch,
    Budget,
    ChannelGroup,
    Curves,
    Cut,
    History,
    Picture,
    Scores,
)
from coa_compress.errors import RecipeError
from coa_compress.gate import Gate
from coa_compress.protocols import Observer, Task
from coa_compress.rounds import cut_after, groups_after
from coa_compress.structure.exported import ExportedStructure
from coa_compress.training.ahead import BatchSupply
from coa_compress.training.loop import TrainingJob, TrainingResult, fit
from coa_compress.training.processes import ALONE, Processes
from coa_compress.training.settings import TrainingSettings


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """Everything that stages hand on; each stage returns a new one.

    Args:
        teacher: The network that is compressed; never changed after training.
        scores: Importance of each channel.
        scorer: Name of the scorer that the scores come from.
        curves: Measured sensitivity of each group, or None when it was not measured.
        budget: What the allocation had to meet.
        allocation: Which channels stay.
        cut: How the student follows from the teacher.
        student: The network after the latest compression stage.
        before: The distilled student of the round before, which was cut again, and how it follows
            from the teacher; None in the first round, in which the teacher was cut.
        adapted: The network after adaptation, or the student itself when the gate refused it.
        gate: The verdict on the adaptation.
        histories: Losses of each training stage by name.
        measurements: By role, then by measure.
        layer_times: Where the time of teacher and student goes, or None where nobody looked.
        pictures: Rows of images for the report.
        notes: Sentences for the report.
    """

    teacher: nn.Module
    scores: Scores | None = None
    scorer: str = ""
    curves: Curves | None = None
    budget: Budget | None = None
    allocation: Allocation | None = None
    cut: Cut | None = None
    student: nn.Module | None = None
    before: Cut | None = None
    adapted: nn.Module | None = None
    gate: Gate | None = None
    histories: Mapping[str, History] = field(default_factory=dict)
    measurements: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    layer_times: Mapping[str, Any] | None = None
    pictures: Sequence[Picture] = ()
    notes: tuple[str, ...] = ()

    def with_history(self, stage: str, history: History) -> "State":
        """Return the same state with the losses of one more stage."""
        return replace(self, histories={**self.histories, stage: history})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Context:
    """What every stage is given besides the state.

    Args:
        task: The problem.
        seed: Start of every random number.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        observer: Hears how it goes.
        structure: Analyzes the teacher when first called.
        example: One input, batch 1, at which everything is counted.
        folder: Where this stage may keep files while it runs, or None.
        processes: Those that train together.
        supply: Where the batches of the task come from.
    """

    task: Task
    seed: int
    device: str
    observer: Observer
    structure: Callable[[nn.Module], ExportedStructure]
    example: Tensor
    folder: Path | None = None
    processes: Processes = ALONE
    supply: BatchSupply = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "supply", BatchSupply(self.task))

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """Tell the observer how far this stage is."""
        self.observer.on_progress(done, total, values)

    def fit(self, job: TrainingJob, settings: TrainingSettings) -> TrainingResult:
        """Train for this stage: on the device, from the seed, resumable where there is a folder."""
        with self.supply.ahead(job.name, settings, seed=self.seed):
            return fit(
                job,
                settings,
                seed=self.seed,
                device=self.device,
                folder=self.folder,
                progress=self.progress,
                processes=self.processes,
            )

    def calibration(self) -> list[Batch]:
        """Return the task's calibration batches on the device."""
        return [batch.to(self.device) for batch in self.task.calibration_batches()]

    def training_batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Return this process' share of a training batch; workers may have drawn it already."""
        batch: Batch = self.supply.draw("training_batch", batch_size, generator)
        return self.shared(batch).to(self.device)

    def real_batch(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Return this process' share of real inputs of an adaptable task, likewise."""
        batch: Tensor = self.supply.draw("real_batch", batch_size, generator)
        return self.processes.share(batch).to(self.device)

    def shared(self, batch: Batch) -> Batch:
        """Return this process' share of a batch that every process has drawn."""
        target = None if batch.target is None else self.processes.share(batch.target)
        return Batch(self.processes.share(batch.input), target)


class Stage(Protocol):
    """One step of the pipeline: a thin class around pure functions.

    ``save`` and ``load`` write and read exactly what ``run`` added to the state, so that a run
    that was interrupted goes on behind the last stage that is done.

    Args:
        name: The key of the recipe; a later round adds its number, as in ``score-2``.
        settings: An instance of ``Settings``.
        Settings: A frozen dataclass.
        needs: Names of stages that must be in the recipe too.

    A stage with an attribute ``trains`` that is true runs on all processes, so that they train
    together; any other runs on the first one.
    """

    name: str
    settings: Any
    Settings: type[Any]
    needs: tuple[str, ...]

    def __init__(self, settings: Any) -> None:
        """Make the stage of some settings."""

    def check(self, state: State, context: Context) -> None:
        """Raise what can be known to be wrong before any stage runs.

        Args:
            state: Where the whole run starts.
            context: What stages are given.
        """

    def run(self, state: State, context: Context) -> State:
        """Return the state after this stage."""

    def save(self, state: State, folder: Path) -> None:
        """Write what this stage added."""

    def load(self, state: State, folder: Path) -> State:
        """Return the state after this stage from what ``save`` wrote."""


def network_so_far(state: State) -> nn.Module:
    """Return the student, or the teacher itself in a run that does not compress."""
    return state.teacher if state.student is None else state.student


def cut_of_round(state: State, stage: str) -> tuple[nn.Module, Cut]:
    """Return the network that was cut last, and the cut as seen from it.

    Raises:
        RecipeError: If nothing was cut, naming the stage that asks.
    """
    cut: Cut = needed(state.cut, "a cut", stage, "prune")
    if state.before is None:
        return state.teacher, cut
    return state.before.student, cut_after(state.before, cut)


def groups_so_far(state: State, groups: Sequence[ChannelGroup]) -> Sequence[ChannelGroup]:
    """Return channel groups of the teacher as an earlier round has left them."""
    if state.allocation is None or state.cut is None:
        return groups
    return groups_after(groups, state.allocation.kept, state.cut)


def needed(value: "Any | None", what: str, stage: str, earlier: str) -> Any:
    """Return a value that an earlier stage must have made.

    Raises:
        RecipeError: If it is None, naming the stage to add.
    """
    if value is None:
        message = f"stage {stage!r} needs {what}: add stage {earlier!r} to the recipe"
        raise RecipeError(message)
    return value

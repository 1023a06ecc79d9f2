"""What the engine asks of a task, a structure, a scorer, an allocator and an observer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from coa_compress.artifacts import (
    Batch,
    Budget,
    ChannelGroup,
    Cut,
    ExpectedLosses,
    Picture,
    Reference,
    Scores,
    Workload,
)
from coa_compress.costs import CostModel
from coa_compress.gate import DomainMeasures

NamedLoss = Callable[[Tensor, Tensor], Tensor]
"""An unweighted scalar loss, from 0, of an output and what it is held against."""

PseudoLabel = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""Makes labels with a network, of real inputs and of its outputs on them; without gradient."""

Loss = Callable[[Tensor, Batch], Tensor]
"""A scalar loss of a network's output on a batch."""


@runtime_checkable
class Task(Protocol):
    """A problem: a teacher, examples, losses and measurements.

    A training example is a pure function of the generator it is given, so that an interrupted
    run can be continued at any step. Batches lie on the CPU; the models that ``validate`` and
    ``measure`` are given lie on the device of the run, and what they are given must be taken there.
    """

    def build_teacher(self) -> nn.Module:
        """Return the trained teacher, in evaluation mode, on the CPU."""

    def example_input(self) -> Tensor:
        """Return one input, batch 1: the size at which MACs and latency are counted."""

    def calibration_batches(self) -> Sequence[Batch]:
        """Return a few fixed batches for scoring and refitting, always the same."""

    def training_batch(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Return a random batch that depends on nothing but the generator."""

    @property
    def losses(self) -> Mapping[str, NamedLoss]:
        """Losses of an output against its target; only those with a weight are computed."""

    def validate(self, model: nn.Module) -> float:
        """Return one figure on the validation split; higher is better (PSNR in dB)."""

    def measure(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Return measurements on the test splits: measure name, then split name, then value."""


@runtime_checkable
class Adaptable(Protocol):
    """A task with unlabelled inputs from the real domain."""

    def real_batch(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """Return random unlabelled real inputs that depend on nothing but the generator."""

    @property
    def guidance(self) -> Mapping[str, NamedLoss]:
        """Prior losses of an output against its real input, which has no ground truth."""

    def domain_measures(self, model: nn.Module) -> DomainMeasures:
        """Return what the gate compares, on real inputs that are held out from adaptation.

        The inputs are the same, in the same order, each time.
        """


@runtime_checkable
class Labeling(Protocol):
    """A task that knows better pseudo-labels of real inputs than the output of a network."""

    @property
    def pseudo_labels(self) -> Mapping[str, PseudoLabel]:
        """Return makers of labels by name, of a network, real inputs and its outputs on them.

        They run without gradient.
        """


@runtime_checkable
class Degradable(Protocol):
    """A task whose outputs can be degraded again by a model of what degrades real inputs."""

    def degrade(self, clear: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
        """Return outputs with a random defect of the kind that the real inputs have.

        Args:
            clear: Outputs or labels.
            real: The inputs that they were made of.
            generator: The only source of randomness.
        """


@runtime_checkable
class Monitored(Protocol):
    """A task that can tell without truth how an adaptation goes."""

    def monitor(self, reference: nn.Module) -> Callable[[nn.Module], float]:
        """Return a judge of networks on real inputs that are used for nothing else.

        Args:
            reference: The student before adaptation, which scores 0; higher is better.
        """


@runtime_checkable
class Showable(Protocol):
    """A task that can show what models do, for the report."""

    def pictures(self, models: Mapping[str, nn.Module]) -> Sequence[Picture]:
        """Return rows of images: the input, the output of each model by name, the truth."""


@runtime_checkable
class Deployable(Protocol):
    """A task whose students can be used on, and judged on, a folder of files.

    The model lies on the device that was asked for.
    """

    def apply_folder(
        self, model: nn.Module, source: Path, out: Path, progress: "Progress"
    ) -> Sequence[Path]:
        """Run the model on every file in a folder; return the files written."""

    def evaluate_folder(
        self, model: nn.Module, data: Path, progress: "Progress"
    ) -> dict[str, dict[str, float]]:
        """Return measurements on a folder of pairs: measure, then split, then value."""


@runtime_checkable
class Deployed(Protocol):
    """A class of tasks that depends on the network, or on settings, when a student is used."""

    @classmethod
    def deployed(cls, settings: Mapping[str, Any], model: nn.Module) -> Task:
        """Return the task that uses and judges a network; folders of a recipe need not be there.

        Args:
            settings: Those of the recipe that made the network, if any.
            model: The network, in evaluation mode.
        """


@runtime_checkable
class Fingerprinted(Protocol):
    """A task that says which data it reads, so that no run is resumed on other data."""

    def fingerprint(self) -> Mapping[str, object]:
        """Return JSON values that differ once the data differ, by the setting that names the data.

        To be fast, as every run asks for it.
        """


@runtime_checkable
class ReadByStage(Protocol):
    """A task that says what few stages read, so that others stay done when it changes."""

    @property
    def read_by(self) -> Mapping[str, Collection[str]]:
        """The stages that read a setting and its data; every stage reads those not named."""


@runtime_checkable
class Rebuildable(Protocol):
    """A task that says how its teacher is built, so that a saved student opens without a model."""

    def teacher_record(self) -> tuple[str, Mapping[str, object]]:
        """Return the class of the teacher, ``package.module:Class``, and its JSON arguments."""


@runtime_checkable
class Explained(Protocol):
    """A task that has words of its own for what it measures, for the report."""

    @property
    def gate_labels(self) -> Mapping[str, str]:
        """Names for people of the measures of the gate and of ``skill``."""

    @property
    def explanations(self) -> Mapping[str, str]:
        """One sentence on what a measure means, by the name of the measure."""


@runtime_checkable
class Noted(Protocol):
    """A task that has something to say that a reader of the report must not miss."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences, each with the task's name or setting in front."""


@runtime_checkable
class Comparable(Protocol):
    """A task that knows what other networks reach on its test splits, for the report."""

    def references(self) -> Sequence[Reference]:
        """Return networks that were measured on exactly the inputs of the splits they name."""


@runtime_checkable
class Perceptive(Protocol):
    """A task that brings its own network for contrast; otherwise the teacher's features serve."""

    def feature_network(self, device: str) -> Callable[[Tensor], Sequence[Tensor]]:
        """Return a function from a batch to features, with a gradient to its input."""


class Structure(Protocol):
    """The channel groups of one network, what they cost, and how to cut them."""

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """Every group that may be cut, in the order of the network."""

    @property
    def costs(self) -> CostModel:
        """Exact MACs and parameters as a function of the widths."""

    def workload(self) -> Workload:
        """Return what one pass does, for budgets on latency and memory."""

    def cut(self, kept: Mapping[str, Tensor]) -> Cut:
        """Return a new network with only the kept channels; groups not named stay whole."""


class Scorer(Protocol):
    """Importance of each channel."""

    def __call__(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        batches: Sequence[Batch],
        loss: Loss,
    ) -> Scores:
        """Return a score of shape ``(n_channels,)`` for each group; the model is unchanged."""


class Allocator(Protocol):
    """The choice of widths that meets a budget."""

    def __call__(
        self,
        groups: Sequence[ChannelGroup],
        losses: ExpectedLosses,
        costs: CostModel,
        budget: Budget,
    ) -> dict[str, int]:
        """Return the width of each group; within the budget and within one step of it.

        Args:
            groups: The channel groups.
            losses: What each group is expected to cost in quality at each of its widths.
            costs: What widths cost.
            budget: The limits.
        """


Progress = Callable[[int, int, Mapping[str, float]], None]
"""Called with steps done, steps in all, and values worth showing."""


class Observer(Protocol):
    """Whoever wants to know how a run goes on; the library itself prints nothing."""

    def on_stage_start(self, stage: str, note: str) -> None:
        """A stage begins; the note says with what."""

    def on_progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """Some steps of the stage are done."""

    def on_stage_end(self, stage: str, seconds: float, note: str) -> None:
        """A stage has ended; the note says with what result."""


class SilentObserver:
    """An observer that shows nothing."""

    def on_stage_start(self, stage: str, note: str) -> None:
        """Do nothing."""

    def on_progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def on_stage_end(self, stage: str, seconds: float, note: str) -> None:
        """Do nothing."""


def no_progress(done: int, total: int, values: Mapping[str, float]) -> None:
    """Do nothing; the progress callback of a caller who does not care."""
    del done, total, values

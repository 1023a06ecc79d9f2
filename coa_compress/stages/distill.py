"""Distill the teacher into the student."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from coa_compress.allocation.losses import expected_losses
from coa_compress.artifacts import Cut
from coa_compress.copying import copied, placed
from coa_compress.distillation.adapters import adapters_between
from coa_compress.distillation.features import FEATURE_TERMS
from coa_compress.distillation.objective import Objective, Terms, frozen
from coa_compress.distillation.taps import Tap, feature_taps
from coa_compress.errors import (
    FOREIGN_ERRORS,
    NoEffectWarning,
    SettingError,
    TrainingError,
    first_line,
)
from coa_compress.protocols import Perceptive, Task
from coa_compress.settings import NonNegativeFloat, NonNegativeInt, PositiveInt, check_ranges
from coa_compress.stages.files import load_history, load_network, save_history, save_network
from coa_compress.stages.state import Context, State, cut_of_round, needed
from coa_compress.structure.folding import ParallelConvs, merge_branches, with_branches
from coa_compress.training.loop import StepLosses, TrainingJob
from coa_compress.training.objective import check_weights
from coa_compress.training.settings import TrainingSettings
from coa_compress.training.terms import weighted_terms

TapChoice = Literal["even", "expected_loss"]
"""How taps are chosen and weighted: alike, or by the loss that cutting is expected to cause."""

Balance = Literal["fixed", "geometric"]
"""How losses are put together: by their weights, or by the weighted geometric mean."""


Rounds = Annotated[int, Interval(ge=1, le=16)]
"""How often a network is cut and distilled on the way to its budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """How the student learns from the teacher.

    Args:
        training: Steps, batch size, learning rate and the like.
        truth: Weight of each of the task's losses against the ground truth; ignored where the
            task has none.
        teacher: Weight of each of the task's losses against the teacher's output.
        feature: Weight of each feature term, see ``coa-compress list features``; a number is
            the weight of ``l2``. Without effect where no convolution was cut.
        contrastive: Weight of the contrast between the truth (the teacher's output where there is
            none) and the input, in the teacher's features at the taps.
        taps: Convolutions whose features are compared, spread over the network.
        tap_choice: ``even``, or ``expected_loss``: of each stretch of the network the convolution
            whose cut is expected to cost most, weighted by that.
        adapters: Compare with all channels of the teacher, through 1x1 convolutions that are
            trained along and dropped; otherwise with those that the student has.
        balance: ``fixed`` adds the losses up by their weights; ``geometric`` takes their weighted
            geometric mean, whatever their sizes.
        branches: Train a 1x1 convolution beside each larger one, and merge the two afterwards.
        rounds: Rounds of score, allocate, prune, refit and distill towards the budget; each keeps
            the same part of the round before, at most 16.
        round_steps: Steps of each round before the last; None for those of ``training``.
        assistant: The student of each round teaches the next one, in place of the teacher
            (Mirzadeh et al. 2020, arXiv:1902.03393).

    Raises:
        RegistryError: If there is no such feature term.
        SettingError: If a value is out of range, or says something of rounds that there are not.
    """

    training: TrainingSettings = field(default_factory=TrainingSettings)
    truth: Mapping[str, NonNegativeFloat] = field(default_factory=lambda: {"l1": 0.5})
    teacher: Mapping[str, NonNegativeFloat] = field(default_factory=lambda: {"l1": 1.0})
    feature: Mapping[str, NonNegativeFloat] | NonNegativeFloat = field(
        default_factory=lambda: {"l2": 0.05}
    )
    contrastive: NonNegativeFloat = 0.0
    taps: NonNegativeInt = 6
    tap_choice: TapChoice = "even"
    adapters: bool = False
    balance: Balance = "fixed"
    branches: bool = False
    rounds: Rounds = 1
    round_steps: PositiveInt | None = None
    assistant: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        self._check_rounds()
        for name in self.feature_weights():
            FEATURE_TERMS.get(name)

    def _check_rounds(self) -> None:
        if self.rounds > 1:
            return
        for name, idle in (
            ("round_steps", self.round_steps is None),
            ("assistant", not self.assistant),
        ):
            if not idle:
                message = f"DistillSettings.{name} needs a round before the last, and rounds is 1: "
                message += f"set rounds to 2 or more, or leave {name} out"
                raise SettingError(message)

    def feature_weights(self) -> dict[str, float]:
        """Return the weights of the feature terms that count."""
        given = self.feature if isinstance(self.feature, Mapping) else {"l2": self.feature}
        return {name: weight for name, weight in given.items() if weight}


class Distill:
    """From a cut student to a trained one."""

    name = "distill"
    trains = True
    Settings = DistillSettings
    needs: tuple[str, ...] = ("prune",)

    def __init__(self, settings: DistillSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Raise if a loss does not exist or cannot be computed, or none counts."""
        terms = self._terms(context.task)
        check_weights(terms.named())
        _check_losses(terms, state.teacher, context.task)

    def run(self, state: State, context: Context) -> State:
        """Return the state with a distilled student."""
        student = placed(needed(state.student, "a student", self.name, "prune"), context.device)
        example = context.example.to(context.device)
        objective = self._objective(student, state, context)
        job = TrainingJob(
            name=self.name,
            model=self._branched(student, example) if self.settings.branches else student,
            step_losses=_step_losses(objective, context, self.settings.training.batch_size),
            weights=objective.weights(),
            validate=context.task.validate,
            trainable_extras=objective.adapters,
        )
        result = context.fit(job, self.settings.training)
        student = merge_branches(result.model, example) if self.settings.branches else result.model
        return replace(state, student=student).with_history(self.name, result.history)

    def _branched(self, student: nn.Module, example: Tensor) -> nn.Module:
        branched = with_branches(student, example)
        if not any(isinstance(module, ParallelConvs) for module in branched.modules()):
            message = "stages.distill.branches has no effect: no convolution that is called is "
            message += "larger than 1x1 and padded by half of its kernel"
            warnings.warn(message, NoEffectWarning, stacklevel=3)
        return branched

    def _terms(self, task: Task) -> Terms:
        has_truth = task.calibration_batches()[0].target is not None
        losses, settings = task.losses, self.settings
        truth = weighted_terms(losses, settings.truth, where="stages.distill.truth")
        teacher = weighted_terms(losses, settings.teacher, where="stages.distill.teacher")
        return Terms(
            truth=truth if has_truth else {},
            teacher=teacher,
            feature=settings.feature_weights(),
            contrastive=settings.contrastive,
        )

    def _objective(self, student: nn.Module, state: State, context: Context) -> Objective:
        task, settings = context.task, self.settings
        network = task.feature_network(context.device) if isinstance(task, Perceptive) else None
        terms = self._terms(task)
        if terms != terms.without_taps(contrast=network is not None):
            taps = self._taps(state, context, terms)
        else:
            taps = ()
        adapted = settings.adapters and taps and terms.feature
        teacher = frozen(placed(copied(self._teacher(state)[0]), context.device))
        return Objective(
            terms=terms if taps else terms.without_taps(contrast=network is not None),
            known=task.losses,
            teacher=teacher,
            taps=taps,
            adapters=adapters_between(student, teacher, taps) if adapted else None,
            network=network,
            balanced=settings.balance == "geometric",
        )

    def _taps(self, state: State, context: Context, terms: Terms) -> tuple[Tap, ...]:
        teacher, cut = self._teacher(state)
        by_loss = self.settings.tap_choice == "expected_loss"
        taps = feature_taps(
            cut,
            self.settings.taps,
            placed(teacher, context.device),
            context.example.to(context.device),
            importance=_expected(state, context) if by_loss else None,
        )
        if not taps:
            why = "no convolution that is called was cut"
            why = why if self.settings.taps else "stages.distill.taps is 0"
            key = "feature" if terms.feature else "contrastive"
            message = f"stages.distill.{key} has no effect: {why}"
            warnings.warn(message, NoEffectWarning, stacklevel=2)
        return taps

    def _teacher(self, state: State) -> tuple[nn.Module, Cut]:
        """Return who teaches, and the cut of the student as seen from there."""
        if self.settings.assistant:
            return cut_of_round(state, self.name)
        return state.teacher, needed(state.cut, "a cut", self.name, "prune")

    def save(self, state: State, folder: Path) -> None:
        """Write the student and its losses."""
        student = needed(state.student, "a student", self.name, self.name)
        save_network(folder / "student.safetensors", student)
        save_history(folder / "history.json", state.histories[self.name])

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the student of the files."""
        like = needed(state.student, "a student", self.name, "prune")
        student = load_network(folder / "student.safetensors", like)
        history = load_history(folder / "history.json")
        return replace(state, student=student).with_history(self.name, history)


def _step_losses(objective: Objective, context: Context, batch_size: int) -> StepLosses:
    def step_losses(
        model: nn.Module, _average: nn.Module, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return objective.losses(model, context.training_batch(batch_size, generator))

    return step_losses


def _expected(state: State, context: Context) -> dict[str, float]:
    """Return the loss that cutting the outputs of each module is expected to cause, by path."""
    allocation = needed(state.allocation, "an allocation", Distill.name, "allocate")
    scores = needed(state.scores, "scores", Distill.name, "score")
    groups = [
        replace(group, n_channels=len(scores[group.name]))  # an earlier round may have cut it
        for group in context.structure(state.teacher).groups
    ]
    losses = expected_losses(groups, scores, state.curves, evenness=allocation.evenness)
    return {
        _layer_of(member.tensor): float(losses[group.name][width])
        for group in groups
        if (width := allocation.widths.get(group.name)) is not None
        for member in group.members
        if member.role == "output"
    }


def _layer_of(tensor: str) -> str:
    path, normed, _ = tensor.partition(".parametrizations.")
    return path if normed else tensor.rpartition(".")[0]


@torch.no_grad()
def _check_losses(terms: Terms, teacher: nn.Module, task: Task) -> None:
    """Raise if what the network returns cannot be held against the truth or against itself."""
    batch = task.calibration_batches()[0]
    output = teacher(batch.input[:1])
    held = [("teacher", terms.teacher, output)]
    held += [] if batch.target is None else [("truth", terms.truth, batch.target[:1])]
    for kind, losses, target in held:
        for name in losses:
            try:
                task.losses[name](output, target)
            except FOREIGN_ERRORS as error:
                message = f"stages.distill.{kind}.{name} cannot be computed for the output of "
                message += f"{type(teacher).__name__}, of shape {tuple(output.shape)}: "
                message += f"{first_line(error)}: choose another loss, or wrap the network"
                raise TrainingError(message) from None

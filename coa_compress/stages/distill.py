"""Distill the teacher into the student."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from coa_compress.distillation import Tap, feature_loss, feature_taps, frozen
from coa_compress.errors import NoEffectWarning
from coa_compress.hooks import captured_outputs
from coa_compress.protocols import Task
from coa_compress.settings import NonNegativeFloat, NonNegativeInt, check_ranges
from coa_compress.stages.files import load_history, load_network, save_history, save_network
from coa_compress.stages.state import Context, State, needed
from coa_compress.training.loop import StepLosses, TrainingJob
from coa_compress.training.objective import check_weights
from coa_compress.training.settings import TrainingSettings
from coa_compress.training.terms import prefixed, values_of_terms, weighted_terms


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillSettings:
    """How the student learns from the teacher.

    Args:
        training: Steps, batch size, learning rate and the like.
        truth: Weight of each of the task's losses against the ground truth; ignored where the
            task has none.
        teacher: Weight of each of the task's losses against the teacher's output.
        feature: Weight of the features at the taps; without effect where no convolution was cut.
        taps: Convolutions whose features are compared, spread over the network.
    """

    training: TrainingSettings = field(default_factory=TrainingSettings)
    truth: Mapping[str, NonNegativeFloat] = field(default_factory=lambda: {"l1": 0.5})
    teacher: Mapping[str, NonNegativeFloat] = field(default_factory=lambda: {"l1": 1.0})
    feature: NonNegativeFloat = 0.05
    taps: NonNegativeInt = 6

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True, slots=True)
class _Weights:
    truth: Mapping[str, float]
    teacher: Mapping[str, float]
    feature: float

    def named(self) -> dict[str, float]:
        """Return all weights by the names of the losses."""
        weights = {**prefixed("truth", self.truth), **prefixed("teacher", self.teacher)}
        return {**weights, "feature": self.feature} if self.feature > 0 else weights


class Distill:
    """From a cut student to a trained one."""

    name = "distill"
    trains = True
    Settings = DistillSettings
    needs: tuple[str, ...] = ("prune",)

    def __init__(self, settings: DistillSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Raise if a loss does not exist, or none counts."""
        del state
        check_weights(self._weights(context.task).named())

    def run(self, state: State, context: Context) -> State:
        """Return the state with a distilled student."""
        student = needed(state.student, "a student", self.name, "prune")
        weights = self._weights(context.task)
        taps = self._taps(state, context) if weights.feature > 0 else ()
        weights = weights if taps else replace(weights, feature=0.0)
        job = TrainingJob(
            name=self.name,
            model=student.to(context.device),
            step_losses=self._step_losses(state, context, weights, taps),
            weights=weights.named(),
            validate=context.task.validate,
        )
        result = context.fit(job, self.settings.training)
        return replace(state, student=result.model).with_history(self.name, result.history)

    def _weights(self, task: Task) -> "_Weights":
        has_truth = task.calibration_batches()[0].target is not None
        losses, settings = task.losses, self.settings
        truth = weighted_terms(losses, settings.truth, where="stages.distill.truth")
        teacher = weighted_terms(losses, settings.teacher, where="stages.distill.teacher")
        return _Weights(truth if has_truth else {}, teacher, settings.feature)

    def _taps(self, state: State, context: Context) -> tuple[Tap, ...]:
        cut = needed(state.cut, "a cut", self.name, "prune")
        teacher = state.teacher.to(context.device)
        taps = feature_taps(cut, self.settings.taps, teacher, context.example.to(context.device))
        if not taps:
            why = "no convolution that is called was cut"
            why = why if self.settings.taps else "stages.distill.taps is 0"
            message = f"stages.distill.feature has no effect: {why}"
            warnings.warn(message, NoEffectWarning, stacklevel=2)
        return taps

    def _step_losses(
        self, state: State, context: Context, weights: "_Weights", taps: tuple[Tap, ...]
    ) -> StepLosses:
        settings, known = self.settings, context.task.losses
        teacher = frozen(copy.deepcopy(state.teacher).to(context.device))
        paths = [tap.path for tap in taps]

        def step_losses(
            model: nn.Module, _average: nn.Module, generator: torch.Generator
        ) -> Mapping[str, Tensor]:
            batch = context.training_batch(settings.training.batch_size, generator)
            with captured_outputs(teacher, paths) as wanted, torch.no_grad():
                label = teacher(batch.input)
            with captured_outputs(model, paths) as features:
                output = model(batch.input)
            losses = values_of_terms(
                "teacher", known, weights.teacher, output=output, against=label
            )
            if batch.target is not None:
                losses |= values_of_terms(
                    "truth", known, weights.truth, output=output, against=batch.target
                )
            if taps:
                losses["feature"] = feature_loss(features, wanted, taps)
            return losses

        return step_losses

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

"""Adapt the student to real, unlabelled inputs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from coa_compress.adaptation import consistency_loss, judge
from coa_compress.artifacts import DomainMeasures, Gate, GateRules
from coa_compress.errors import RecipeError
from coa_compress.protocols import Adaptable, Task
from coa_compress.settings import NonNegativeFloat, check_ranges
from coa_compress.stages.files import (
    load_history,
    load_network,
    read_json,
    save_history,
    save_network,
    write_json,
)
from coa_compress.stages.state import Context, State, needed
from coa_compress.stages.train import truth_of
from coa_compress.training.loop import StepLosses, TrainingJob
from coa_compress.training.objective import check_weights
from coa_compress.training.settings import TrainingSettings
from coa_compress.training.terms import prefixed, values_of_terms, weighted_terms

_REPLAY = "stages.adapt.replay"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptSettings:
    """How the student is adapted.

    Args:
        training: Steps, batch size, learning rate and the like; ``ema_decay`` is the slowness of
            the mean teacher.
        consistency: Weight of the distance to the mean teacher's output on real inputs.
        prior: Weight of each of the task's prior losses on real inputs.
        replay: Weight of each of the task's losses on replayed labelled pairs, which keep the
            skill learned before.
        gate: What the adapted student must satisfy; otherwise the one before is returned.
    """

    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(steps=120, learning_rate=1e-4, ema_decay=0.95)
    )
    consistency: NonNegativeFloat = 1.0
    prior: Mapping[str, NonNegativeFloat] = field(default_factory=dict)
    replay: Mapping[str, NonNegativeFloat] = field(default_factory=lambda: {"l1": 1.0})
    gate: GateRules = field(default_factory=GateRules)

    def __post_init__(self) -> None:
        check_ranges(self)


class Adapt:
    """From the student to one adapted to the real domain, or back to the student."""

    name = "adapt"
    trains = True
    Settings = AdaptSettings
    needs: tuple[str, ...] = ("prune",)

    def __init__(self, settings: AdaptSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Raise if the task has no real inputs, a loss does not exist, or none counts."""
        del state
        prior, replay = self._terms(context.task)
        check_weights(self._weights(prior, replay))
        if replay:
            truth_of(context.task.calibration_batches()[0], _REPLAY)

    def run(self, state: State, context: Context) -> State:
        """Return the state with an adapted student and the verdict of the gate."""
        student = needed(state.student, "a student", self.name, "prune").to(context.device)
        task, settings = _adaptable(context.task), self.settings
        prior, replay = self._terms(context.task)
        job = TrainingJob(
            name=self.name,
            model=student,
            step_losses=self._step_losses(context, prior, replay),
            weights=self._weights(prior, replay),
        )
        result = context.fit(job, settings.training)
        before, after = task.domain_measures(student), task.domain_measures(result.model)
        gate = judge(before, after, settings.gate)
        adapted = result.model if gate.accepted else student
        state = replace(state, adapted=adapted, gate=gate)
        return state.with_history(self.name, result.history)

    def _terms(self, task: Task) -> tuple[dict[str, float], dict[str, float]]:
        guidance, settings = _adaptable(task).guidance, self.settings
        prior = weighted_terms(guidance, settings.prior, where="stages.adapt.prior")
        return prior, weighted_terms(task.losses, settings.replay, where=_REPLAY)

    def _weights(self, prior: Mapping[str, float], replay: Mapping[str, float]) -> dict[str, float]:
        weights = {**prefixed("prior", prior), **prefixed("replay", replay)}
        if self.settings.consistency > 0:
            weights["consistency"] = self.settings.consistency
        return weights

    def _step_losses(
        self, context: Context, prior: Mapping[str, float], replay: Mapping[str, float]
    ) -> StepLosses:
        settings, task, real_task = self.settings, context.task, _adaptable(context.task)
        batch_size = settings.training.batch_size

        def step_losses(
            model: nn.Module, average: nn.Module, generator: torch.Generator
        ) -> Mapping[str, Tensor]:
            losses: dict[str, Tensor] = {}
            if prior or settings.consistency > 0:
                drawn = real_task.real_batch(batch_size, generator)
                real = context.processes.share(drawn).to(context.device)
                output = model(real)
                losses |= values_of_terms(
                    "prior", real_task.guidance, prior, output=output, against=real
                )
                if settings.consistency > 0:
                    losses["consistency"] = consistency_loss(output, average, real)
            if replay:
                batch = context.training_batch(batch_size, generator)
                output, truth = model(batch.input), truth_of(batch, _REPLAY)
                losses |= values_of_terms(
                    "replay", task.losses, replay, output=output, against=truth
                )
            return losses

        return step_losses

    def save(self, state: State, folder: Path) -> None:
        """Write the adapted student, its losses and the verdict."""
        adapted = needed(state.adapted, "an adapted student", self.name, self.name)
        save_network(folder / "adapted.safetensors", adapted)
        save_history(folder / "history.json", state.histories[self.name])
        gate: Gate = needed(state.gate, "a verdict", self.name, self.name)
        write_json(folder / "gate.json", asdict(gate))

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the adapted student of the files."""
        like = needed(state.student, "a student", self.name, "prune")
        found = read_json(folder / "gate.json")
        gate = Gate(
            accepted=found["accepted"],
            before=DomainMeasures(**found["before"]),
            after=DomainMeasures(**found["after"]),
            rules=GateRules(**found["rules"]),
            reasons=tuple(found["reasons"]),
        )
        adapted = load_network(folder / "adapted.safetensors", like)
        state = replace(state, adapted=adapted, gate=gate)
        return state.with_history(self.name, load_history(folder / "history.json"))


def _adaptable(task: Task) -> Adaptable:
    if isinstance(task, Adaptable):
        return task
    message = f"task {type(task).__name__} has no real inputs: remove stage 'adapt'"
    raise RecipeError(message)

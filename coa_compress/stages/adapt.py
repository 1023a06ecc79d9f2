"""Adapt the student to real, unlabelled inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import nn

from coa_compress.artifacts import History
from coa_compress.copying import placed
from coa_compress.errors import RecipeError, SettingError, TrainingError
from coa_compress.gate import Gate, GateRules, gate_from_json, gate_to_json, judge
from coa_compress.protocols import Monitored, Task
from coa_compress.settings import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    check_ranges,
)
from coa_compress.stages.adapt_terms import (
    REPLAY,
    AdaptStep,
    Terms,
    adaptable,
    degradable,
    pseudo_label,
)
from coa_compress.stages.files import (
    load_history,
    load_network,
    read_json,
    save_history,
    save_network,
    write_json,
)
from coa_compress.stages.state import Context, State, needed, network_so_far
from coa_compress.stages.train import truth_of
from coa_compress.training.averaging import MeanTeacherSettings, averaged_copy, follow_
from coa_compress.training.bilevel import Order
from coa_compress.training.loop import TrainingJob
from coa_compress.training.objective import check_weights
from coa_compress.training.settings import TrainingSettings
from coa_compress.training.terms import weighted_terms
from coa_compress.training.updates import Update, limited, merged

Mode = Literal["ema", "bilevel"]
"""How the terms on real inputs and on replayed pairs come together."""

Labeler = Literal["student", "teacher"]
"""Whose outputs on real inputs become pseudo-labels; of the student it is a slow copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptSettings:
    """How the student is adapted.

    Args:
        training: Steps, batch size, learning rate and the like. With ``patience`` the task says
            without truth which step was best, on real inputs that are used for nothing else.
        mode: ``ema`` minimizes the sum of all terms. ``bilevel`` minimizes the terms on real
            inputs where one step on the replayed pairs leads, so that it finds changes that
            replaying does not undo; the replayed pairs are minimized along with it.
        bilevel: ``unrolled`` counts the curvature of the loss on replayed pairs, ``first_order``
            does not.
        lower_rate: Step size of that step.
        labeler: Who makes the pseudo-labels: a slow copy of the ``student``, or the ``teacher``,
            which stays as it is.
        mean_teacher: How the slow copy of the student follows.
        label: How they are made: ``plain``, ``twice``, or a way that the task knows.
        label_strength: Part of the way from the output to that label, in ``(0, 1]``.
        update: What is trained: ``all`` weights, those of ``norm`` layers, or ``low_rank`` deltas
            that are merged at the end; the last two suit few real inputs.
        rank: Rank of the deltas.
        statistics: Whether norm layers use and keep the statistics that they have, ``fixed``, or
            use those of each batch and follow them, ``updated``.
        consistency: Weight of the distance to the pseudo-label on real inputs.
        cycle: Weight of the distance to the pseudo-label on inputs that the task makes of it.
        prior: Weight of each of the task's prior losses on real inputs.
        replay: Weight of each of the task's losses against the truth on replayed pairs, which
            keep the skill learned before.
        retain: Weight of each of the task's losses against the teacher's outputs on the replayed
            inputs, which need no truth (learning without forgetting, Li and Hoiem 2016).
        gate: What the adapted student must satisfy; otherwise the one before is returned.

    Raises:
        SettingError: If a value is out of range, or ``bilevel: unrolled`` meets bf16.
    """

    training: TrainingSettings = field(
        default_factory=lambda: TrainingSettings(steps=120, learning_rate=1e-4, ema_decay=0.0)
    )
    mode: Mode = "ema"
    bilevel: Order = "unrolled"
    lower_rate: PositiveFloat = 0.01
    labeler: Labeler = "student"
    mean_teacher: MeanTeacherSettings = field(default_factory=MeanTeacherSettings)
    label: str = "plain"
    label_strength: Fraction = 1.0
    update: Update = "all"
    rank: PositiveInt = 4
    statistics: Literal["fixed", "updated"] = "fixed"
    consistency: NonNegativeFloat = 1.0
    cycle: NonNegativeFloat = 0.0
    prior: Mapping[str, NonNegativeFloat] = field(default_factory=dict)
    replay: Mapping[str, NonNegativeFloat] = field(default_factory=lambda: {"l1": 1.0})
    retain: Mapping[str, NonNegativeFloat] = field(default_factory=dict)
    gate: GateRules = field(default_factory=GateRules)

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.order == "unrolled" and self.training.precision == "bf16":
            message = (
                "AdaptSettings.training.precision is bf16, which drowns the differences that "
                "bilevel: unrolled is made of: use fp32, or first_order"
            )
            raise SettingError(message)

    @property
    def order(self) -> Order | None:
        """The order of the bilevel gradient, or None in another mode."""
        return self.bilevel if self.mode == "bilevel" else None


class Adapt:
    """From the student to one adapted to the real domain, or back to the student.

    In a recipe that does not cut, the teacher itself is adapted.
    """

    name = "adapt"
    trains = True
    Settings = AdaptSettings
    needs: tuple[str, ...] = ()

    def __init__(self, settings: AdaptSettings) -> None:
        self.settings = settings

    def check(self, state: State, context: Context) -> None:
        """Raise if the task has no real inputs, or what is asked for does not exist or count."""
        del state
        task, settings = context.task, self.settings
        terms = self._terms(task)
        check_weights({**terms.real(), **terms.replayed()})
        self._check_bilevel(terms)
        pseudo_label(task, settings.label)
        if terms.cycle > 0:
            degradable(task)
        if settings.training.patience is not None:
            _monitored(task)
        if terms.replay:
            truth_of(task.calibration_batches()[0], REPLAY)

    def run(self, state: State, context: Context) -> State:
        """Return the state with an adapted student and the verdict of the gate."""
        student = placed(network_so_far(state), context.device)
        task, settings = adaptable(context.task), self.settings
        model, history = self.adapt(student, context, teacher=state.teacher)
        before, after = task.domain_measures(student), task.domain_measures(model)
        gate = judge(before, after, settings.gate)
        adapted = model if gate.accepted else student
        state = replace(state, adapted=adapted, gate=gate)
        return state.with_history(self.name, history)

    def adapt(
        self, student: nn.Module, context: Context, *, teacher: nn.Module
    ) -> tuple[nn.Module, History]:
        """Return the adapted student, which no gate has judged, and how it came about.

        Args:
            student: On the device of the context; unchanged.
            context: Gives the task, the seed and the device.
            teacher: Makes the pseudo-labels where the settings say so, and what the student
                retains; unchanged.
        """
        result = context.fit(self._job(student, context, teacher), self._training())
        return merged(result.model, student), result.history

    def _job(self, student: nn.Module, context: Context, teacher: nn.Module) -> TrainingJob:
        settings, terms = self.settings, self._terms(context.task)
        model = limited(student, settings.update, rank=settings.rank)
        follows = settings.labeler == "student"
        teacher = placed(averaged_copy(teacher), context.device)
        labeler = placed(averaged_copy(model), context.device) if follows else teacher

        def after_step(network: nn.Module, step: int) -> None:
            follow_(labeler, network, step, settings.mean_teacher)

        step = AdaptStep(
            context=context,
            terms=terms,
            label=pseudo_label(context.task, settings.label),
            label_strength=settings.label_strength,
            labeler=labeler,
            teacher=teacher,
            batch_size=settings.training.batch_size,
            order=settings.order,
            lower_rate=settings.lower_rate,
            fixed_statistics=settings.statistics == "fixed",
        )
        monitored = settings.training.patience is not None
        return TrainingJob(
            name=self.name,
            model=model,
            step_losses=step,
            weights=terms.trained(settings.order),
            validate=_monitored(context.task).monitor(student) if monitored else None,
            trainable_extras=labeler if follows else None,
            after_step=after_step if follows else None,
        )

    def _training(self) -> TrainingSettings:
        training = self.settings.training
        exact = self.settings.order == "unrolled"
        return replace(training, precision="fp32") if exact else training

    def _terms(self, task: Task) -> Terms:
        guidance, settings = adaptable(task).guidance, self.settings
        return Terms(
            prior=weighted_terms(guidance, settings.prior, where="stages.adapt.prior"),
            consistency=settings.consistency,
            cycle=settings.cycle,
            replay=weighted_terms(task.losses, settings.replay, where=REPLAY),
            retain=weighted_terms(task.losses, settings.retain, where="stages.adapt.retain"),
        )

    def _check_bilevel(self, terms: Terms) -> None:
        if self.settings.order is None or (terms.real() and terms.replayed()):
            return
        lacks = "stages.adapt.replay or retain" if terms.real() else "a term on real inputs"
        message = f"stages.adapt.mode bilevel has two levels and lacks {lacks}: add it or use ema"
        raise TrainingError(message)

    def save(self, state: State, folder: Path) -> None:
        """Write the adapted student, its losses and the verdict."""
        adapted = needed(state.adapted, "an adapted student", self.name, self.name)
        save_network(folder / "adapted.safetensors", adapted)
        save_history(folder / "history.json", state.histories[self.name])
        gate: Gate = needed(state.gate, "a verdict", self.name, self.name)
        write_json(folder / "gate.json", gate_to_json(gate))

    def load(self, state: State, folder: Path) -> State:
        """Return the state with the adapted student of the files."""
        like = network_so_far(state)
        gate = gate_from_json(read_json(folder / "gate.json"))
        adapted = load_network(folder / "adapted.safetensors", like)
        state = replace(state, adapted=adapted, gate=gate)
        return state.with_history(self.name, load_history(folder / "history.json"))


def _monitored(task: Task) -> Monitored:
    if isinstance(task, Monitored):
        return task
    message = (
        f"stages.adapt.training.patience needs a task that can judge without truth, and "
        f"{type(task).__name__} has no method monitor: remove it"
    )
    raise RecipeError(message)

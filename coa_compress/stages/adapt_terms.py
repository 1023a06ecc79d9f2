"""What one step of adaptation minimizes: the terms on real inputs and on replayed pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from coa_compress.adaptation import (
    PSEUDO_LABELS,
    consistency_loss,
    cycle_loss,
    label_on_the_way,
)
from coa_compress.artifacts import Batch
from coa_compress.errors import RecipeError, TrainingError
from coa_compress.protocols import Adaptable, Degradable, Labeling, PseudoLabel, Task
from coa_compress.registry import did_you_mean
from coa_compress.stages.state import Context
from coa_compress.stages.train import truth_of
from coa_compress.training.bilevel import Order, carrying, hypergradient
from coa_compress.training.objective import weighted_total
from coa_compress.training.terms import prefixed, values_of_terms
from coa_compress.training.updates import fix_statistics_

REPLAY = "stages.adapt.replay"
"""Key of the recipe that asks for truth."""

_BILEVEL = "bilevel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Which losses count, and how much.

    Args:
        prior: Weight of each of the task's priors on real inputs.
        consistency: Weight of the distance to the pseudo-label.
        cycle: Weight of the distance to the pseudo-label after it was degraded again.
        replay: Weight of each of the task's losses against the truth, on replayed pairs.
        retain: Weight of each of the task's losses against the teacher's outputs, on the same.
    """

    prior: Mapping[str, float]
    consistency: float
    cycle: float
    replay: Mapping[str, float]
    retain: Mapping[str, float]

    def real(self) -> dict[str, float]:
        """Return the weights of the terms on real inputs, without those that are 0."""
        weights = {**prefixed("prior", self.prior), "consistency": self.consistency}
        weights["cycle"] = self.cycle
        return {name: weight for name, weight in weights.items() if weight > 0}

    def replayed(self) -> dict[str, float]:
        """Return the weights of the terms on replayed pairs."""
        return {**prefixed("replay", self.replay), **prefixed("retain", self.retain)}

    def trained(self, order: Order | None) -> dict[str, float]:
        """Return the weights of the named losses that a step gives a gradient.

        Args:
            order: Of a bilevel step, whose terms on real inputs come as one; None for a sum.
        """
        return {**(self.real() if order is None else {_BILEVEL: 1.0}), **self.replayed()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AdaptStep:
    """The losses of one step, as the training loop asks for them.

    Args:
        context: Gives the task, the device and the batches.
        terms: What counts.
        label: Makes the pseudo-label of a real input.
        label_strength: Part of the way from the output to that label.
        labeler: The network that makes it.
        teacher: The network whose outputs on replayed inputs are retained.
        batch_size: Real inputs, and replayed pairs.
        order: Of the bilevel gradient, or None for a sum of all terms.
        lower_rate: Step size of the virtual step on replayed pairs.
        fixed_statistics: Whether norm layers keep their statistics, and use them.
    """

    context: Context
    terms: Terms
    label: PseudoLabel
    label_strength: float
    labeler: nn.Module
    teacher: nn.Module
    batch_size: int
    order: Order | None
    lower_rate: float
    fixed_statistics: bool

    def __call__(
        self, model: nn.Module, average: nn.Module, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """Return the named, unweighted losses of one micro-step."""
        del average
        if self.fixed_statistics:
            fix_statistics_(model)
        real = self._real(generator) if self.terms.real() else None
        batch = (
            self.context.training_batch(self.batch_size, generator)
            if self.terms.replayed()
            else None
        )
        if self.order is not None and real is not None and batch is not None:
            return self._bilevel(model, real, batch)
        losses: dict[str, Tensor] = {}
        if real is not None:
            losses |= self._real_losses(model, real)
        if batch is not None:
            losses |= self._replay_losses(model, batch)
        return losses

    def _bilevel(self, model: nn.Module, real: "_Real", batch: Batch) -> Mapping[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def upper(network: nn.Module) -> Tensor:
            losses = self._real_losses(network, real)
            seen.update({name: loss.detach() for name, loss in losses.items()})
            return weighted_total(losses, self.terms.real())

        def lower(network: nn.Module) -> Tensor:
            return weighted_total(self._replay_losses(network, batch), self.terms.replayed())

        value, gradient = hypergradient(
            model, upper, lower, rate=self.lower_rate, order=self.order or "unrolled"
        )
        if not self.fixed_statistics:
            with torch.no_grad():
                model(real.inputs)
        return {
            **seen,
            _BILEVEL: carrying(value, model, gradient),
            **self._replay_losses(model, batch),
        }

    def _real(self, generator: torch.Generator) -> "_Real":
        inputs = self.context.real_batch(self.batch_size, generator)
        real = _Real(inputs)
        if self.terms.consistency > 0 or self.terms.cycle > 0:
            labeler, strength = self.labeler.eval(), self.label_strength
            with torch.no_grad():
                label = label_on_the_way(labeler, inputs, self.label, strength=strength)
            real = replace(real, label=label)
        if self.terms.cycle > 0 and real.label is not None:
            again = degradable(self.context.task).degrade(real.label, inputs, generator)
            real = replace(real, degraded=again)
        return real

    def _real_losses(self, model: nn.Module, real: "_Real") -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        if self.terms.prior or self.terms.consistency > 0:
            output, guidance = model(real.inputs), adaptable(self.context.task).guidance
            losses |= values_of_terms(
                "prior", guidance, self.terms.prior, output=output, against=real.inputs
            )
            if self.terms.consistency > 0 and real.label is not None:
                losses["consistency"] = consistency_loss(output, real.label)
        if real.degraded is not None and real.label is not None:
            losses["cycle"] = cycle_loss(model, real.degraded, real.label)
        return losses

    def _replay_losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        output, losses, terms = model(batch.input), self.context.task.losses, self.terms
        found: dict[str, Tensor] = {}
        if terms.replay:
            truth = truth_of(batch, REPLAY)
            found |= values_of_terms("replay", losses, terms.replay, output=output, against=truth)
        if terms.retain:
            with torch.no_grad():
                known = self.teacher(batch.input)
            found |= values_of_terms("retain", losses, terms.retain, output=output, against=known)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Real:
    inputs: Tensor
    label: Tensor | None = None
    degraded: Tensor | None = None


def adaptable(task: Task) -> Adaptable:
    """Return the task as one with real inputs.

    Raises:
        RecipeError: If it has none.
    """
    if isinstance(task, Adaptable):
        return task
    message = f"task {type(task).__name__} has no real inputs: remove stage 'adapt'"
    raise RecipeError(message)


def degradable(task: Task) -> Degradable:
    """Return the task as one that can degrade its outputs again.

    Raises:
        RecipeError: If it cannot.
    """
    if isinstance(task, Degradable):
        return task
    message = (
        f"stages.adapt.cycle needs a task that can degrade an output again, and "
        f"{type(task).__name__} has no method degrade: set it to 0"
    )
    raise RecipeError(message)


def pseudo_label(task: Task, name: str) -> PseudoLabel:
    """Return the maker of pseudo-labels of a name: of the engine, or of the task.

    Raises:
        TrainingError: If there is none, with the closest one that there is.
    """
    known = {**PSEUDO_LABELS, **(task.pseudo_labels if isinstance(task, Labeling) else {})}
    if name not in known:
        message = f"stages.adapt.label is {name!r}: {did_you_mean(name, known)}"
        raise TrainingError(message)
    return known[name]

"""The named losses of a student in distillation, all computed from one batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch
from coa_compress.distillation.adapters import FeatureAdapters
from coa_compress.distillation.balancing import geometric_mean
from coa_compress.distillation.contrastive import (
    FeatureNetwork,
    TappedNetwork,
    contrastive_ratio,
)
from coa_compress.distillation.features import FEATURE_TERMS
from coa_compress.distillation.taps import Tap, tap_shares
from coa_compress.errors import TrainingError
from coa_compress.hooks import captured_outputs
from coa_compress.protocols import NamedLoss
from coa_compress.training.terms import prefixed, values_of_terms

BALANCED = "balanced"
"""Name of the one loss that counts when the others are balanced."""

CONTRASTIVE = "contrastive"
"""Name of the contrast among the losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """Weights of the losses of a student; a loss with weight 0 is not computed.

    Args:
        truth: Of the task's losses against the truth.
        teacher: Of the task's losses against the teacher's output.
        feature: Of the feature terms.
        contrastive: Of the contrast.
    """

    truth: Mapping[str, float] = field(default_factory=dict)
    teacher: Mapping[str, float] = field(default_factory=dict)
    feature: Mapping[str, float] = field(default_factory=dict)
    contrastive: float = 0.0

    def named(self) -> dict[str, float]:
        """Return all weights by the names of the losses."""
        weights = {
            **prefixed("truth", self.truth),
            **prefixed("teacher", self.teacher),
            **prefixed("feature", self.feature),
        }
        return weights | ({CONTRASTIVE: self.contrastive} if self.contrastive else {})

    def without_taps(self, *, contrast: bool = False) -> "Terms":
        """Return the same weights without those that need taps.

        Args:
            contrast: Keep the contrast, which a network of its own can do without taps.
        """
        return replace(self, feature={}, contrastive=self.contrastive if contrast else 0.0)


@dataclass(slots=True, eq=False, kw_only=True)
class Objective:
    """The losses of a student on a batch.

    Args:
        terms: Which losses count.
        known: The task's losses by name.
        teacher: In evaluation mode, without gradients of its own.
        taps: Where features are compared.
        adapters: From the student's features to the teacher's widths; None compares the channels
            that both have.
        network: Gives the features of the contrast; None takes the teacher's at the taps.
        balanced: Add the loss ``balanced``, the geometric mean of those that count.
    """

    terms: Terms
    known: Mapping[str, NamedLoss]
    teacher: nn.Module
    taps: Sequence[Tap] = ()
    adapters: FeatureAdapters | None = None
    network: FeatureNetwork | None = None
    balanced: bool = False
    _checked: bool = field(default=False, init=False)

    def weights(self) -> dict[str, float]:
        """Return the weight of each loss that counts in the sum."""
        return {BALANCED: 1.0} if self.balanced else self.terms.named()

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return every loss that has a weight, by name; scalars.

        Args:
            model: The student.
            batch: On the device of student and teacher.

        Raises:
            TrainingError: If a tap is not reached, or a tap or an adapter gets no gradient.
        """
        paths = [tap.path for tap in self.taps] if self.terms.feature else []
        with captured_outputs(self.teacher, paths) as wanted, torch.no_grad():
            label = self.teacher(batch.input) if self._asks_teacher(batch) else None
        with captured_outputs(model, paths) as features:
            output = model(batch.input)
        losses = dict(self._of_output(output, label, batch))
        if self.terms.feature:
            losses |= self._of_features(features, wanted)
        if self.terms.contrastive:
            losses[CONTRASTIVE] = self._contrast(output, label, batch)
        if self.balanced:
            losses[BALANCED] = geometric_mean(losses, self.terms.named())
        return losses

    def _asks_teacher(self, batch: Batch) -> bool:
        blind = self.terms.contrastive > 0 and batch.target is None
        return bool(self.terms.teacher) or bool(self.terms.feature) or blind

    def _of_output(
        self, output: Tensor, label: Tensor | None, batch: Batch
    ) -> Iterator[tuple[str, Tensor]]:
        sources = (
            ("teacher", self.terms.teacher, label),
            ("truth", self.terms.truth, batch.target),
        )
        for source, weights, wanted in sources:
            if wanted is not None:
                yield from values_of_terms(
                    source, self.known, weights, output=output, against=wanted
                ).items()

    def _of_features(
        self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        mine, wanted = compared(student, teacher, self.taps, self.adapters)
        parts = tap_shares(self.taps)
        losses = {
            f"feature.{name}": FEATURE_TERMS.get(name)(mine, wanted, parts)
            for name in self.terms.feature
        }
        if not self._checked and torch.is_grad_enabled():
            total = torch.stack([loss.float().reshape(()) for loss in losses.values()]).sum()
            check_gradients(total, student, self.taps, self.adapters)
            self._checked = True
        return losses

    def _contrast(self, output: Tensor, label: Tensor | None, batch: Batch) -> Tensor:
        parts = tap_shares(self.taps)
        network = self.network or TappedNetwork(self.teacher, [tap.path for tap in self.taps])
        right = label if batch.target is None else batch.target
        if right is None:
            message = "the contrast has nothing that is right: no truth and no teacher"
            raise TrainingError(message)
        with torch.no_grad():
            positive, negative = network(right), network(batch.input)
        anchor = network(output)
        if self.network is not None:
            parts = [1 / max(1, len(anchor))] * len(anchor)
        return contrastive_ratio(anchor, positive, negative, parts)


def compared(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    taps: Sequence[Tap],
    adapters: FeatureAdapters | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the features of student and teacher in equal shapes, one tensor a tap, float32.

    Args:
        student: Features by path, shape ``(batch, kept, height, width)``.
        teacher: Features by path, shape ``(batch, channels, height, width)``.
        taps: Where to compare.
        adapters: What turns the student's features into the teacher's widths; None takes those
            channels of the teacher that the student has.

    Raises:
        TrainingError: If there is no tap, one was not reached by the forward pass, or one needs an
            adapter and there is none.

    >>> x = torch.rand(1, 4, 2, 2)
    >>> mine, wanted = compared({"a": x[:, :2]}, {"a": x}, [Tap("a", torch.tensor([1, 3]))])
    >>> torch.equal(wanted[0], x[:, [1, 3]])
    True
    """
    if not taps:
        message = "the feature terms have no tap: set stages.distill.taps above 0 or feature to {}"
        raise TrainingError(message)
    for tap in taps:
        if tap.path not in student or tap.path not in teacher:
            message = f"the tap {tap.path!r} is not reached by the forward pass: lower the taps"
            raise TrainingError(message)
    mine = [student[tap.path].float() for tap in taps]
    wanted = [teacher[tap.path].float() for tap in taps]
    if adapters is not None:
        return adapters(mine), wanted
    return mine, [_kept(tap, x) for tap, x in zip(taps, wanted, strict=True)]


def check_gradients(
    total: Tensor,
    student: Mapping[str, Tensor],
    taps: Sequence[Tap],
    adapters: FeatureAdapters | None = None,
) -> None:
    """Raise if a feature or an adapter is not trained by a loss.

    Args:
        total: The loss.
        student: Features of the student by path.
        taps: Each must get a gradient.
        adapters: So must each of these.

    Raises:
        TrainingError: Naming the first tap or adapter that gets none.

    >>> x = torch.ones(1, 1, 1, 1, requires_grad=True)
    >>> check_gradients(x.sum(), {"a": x}, [Tap("a", None)])
    """
    named = {f"tap {tap.path!r}": student[tap.path] for tap in taps}
    if adapters is not None:
        pairs = zip(adapters.paths, adapters.weights, strict=True)
        named |= {f"adapter of the tap {path!r}": weight for path, weight in pairs}
    trained = total.requires_grad and all(tensor.requires_grad for tensor in named.values())
    gradients: Sequence[Tensor | None] = [None] * len(named)
    if trained:
        gradients = torch.autograd.grad(
            total, list(named.values()), retain_graph=True, allow_unused=True
        )
    for (name, tensor), gradient in zip(named.items(), gradients, strict=True):
        if (trained and gradient is None) or not (tensor.requires_grad and total.requires_grad):
            message = (
                f"the {name} gets no gradient from the feature terms: leave it out, or train what "
                f"is before it, with neither detach nor no_grad between it and the loss"
            )
            raise TrainingError(message)


def frozen(model: nn.Module) -> nn.Module:
    """Return the same network in evaluation mode without gradients; changed in place."""
    return model.eval().requires_grad_(requires_grad=False)


def _kept(tap: Tap, wanted: Tensor) -> Tensor:
    if tap.kept is None:
        message = f"the student has other channels at the tap {tap.path!r}: set adapters: true"
        raise TrainingError(message)
    return wanted.index_select(1, tap.kept.to(wanted.device))

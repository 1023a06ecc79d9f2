"""Refit of one layer: what it reads in the student, what it should return, and the verdict."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.refit.calls import Call, Watch
from coa_compress.refit.operators import LinearOperator, Statistics, values_at
from coa_compress.refit.plan import Layer
from coa_compress.refit.sampling import Portion, Sample
from coa_compress.refit.solve import Effort, FewRows, NormalEquations, Rows
from coa_compress.refit.statistics import Moments, Normalization
from coa_compress.refit.targets import Targets, add_moments_
from coa_compress.refit.tracing import Ledger, RunId
from coa_compress.structure.rebuild import named_tensors

_LEAST_GAIN = 1e-3
"""A layer is changed only if its error falls by at least this part."""
_ROUNDING = 1e-10
"""Relative squared errors below this are rounding in single precision."""


@dataclass(frozen=True, slots=True)
class LayerRefit:
    """What became of one layer.

    Args:
        path: The layer, or the parameter where no layer owns it.
        error_before: Mean squared error against the teacher on held-out positions, relative to
            the variance of what the teacher has there; all layers before it are refitted already.
        error_after: The same with the new weights.
        accepted: Whether the new weights are used: whether the error fell.
    """

    path: str
    error_before: float
    error_after: float
    accepted: bool


class _AllSeenError(Exception):
    """Ends a forward pass as soon as everything wanted of it is known."""


def refit_layer_(
    student: nn.Module, layer: Layer, targets: Targets, effort: Effort, ridges: Sequence[float]
) -> LayerRefit:
    """Refit one layer of a student in place, if that helps; return what became of it.

    Args:
        student: In evaluation mode; all layers before this one are refitted already.
        layer: The layer.
        targets: What the teacher has there.
        effort: How the system is solved.
        ridges: Strengths of the pull to the present weights that are tried.
    """
    if isinstance(layer.operator, Statistics):
        return _refit_statistics_(student, layer, targets)
    system = (NormalEquations if effort.multiplied_out else FewRows)(len(layer.biases))
    shape = torch.Size()
    for portion, samples in _by_portion(layer, targets):
        for seen in _seen(student, layer, portion, samples):
            system.add_(seen.rows)
            shape = seen.shape
    fit = system.best(ridges)
    verdict = _verdict(layer, targets, fit.error_before, fit.error)
    if verdict.accepted and fit.update is not None:
        before = _written(student, layer)
        operator = _linear(layer)
        layer.place.add_(student, operator.weight(fit.update, shape))
        for bias, shift in zip(layer.biases, fit.shifts, strict=True):
            bias.add_(student, shift.flatten())
        if layer.place.computed or len(layer.runs) > 1:
            verdict = _verdict(
                layer, targets, fit.error_before, held_error(student, layer, targets)
            )
            if not verdict.accepted:
                _restore_(student, before)
    return verdict


def held_error(student: nn.Module, layer: Layer, targets: Targets) -> float:
    """Return the sum of squares that a layer is off, on the positions that judge."""
    total = 0.0
    for portion, samples in _by_portion(layer, targets):
        for seen in _seen(student, layer, portion, samples):
            total += float(seen.rows.residual[:, seen.rows.held].square().sum())
    return total


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    rows: Rows
    shape: torch.Size


def _by_portion(layer: Layer, targets: Targets) -> Iterator[tuple[Portion, dict[RunId, Sample]]]:
    for number, portion in enumerate(targets.portions):
        yield portion, {run: targets.samples[run][number] for run in layer.runs}


def _seen(
    student: nn.Module, layer: Layer, portion: Portion, samples: dict[RunId, Sample]
) -> list[_Seen]:
    """Return what the runs of a layer read in the student, and what is missing behind them."""
    ledger, done = Ledger(student), list[_Seen]()

    def visit(call: Call) -> None:
        run = ledger.enter(call)
        if run in layer.runs:
            rows = _rows(call, samples[run], layer.runs[run])
            done.append(_Seen(rows, call.weight.shape))
            if len(done) == len(layer.runs):
                raise _AllSeenError

    try:
        with Watch(visit):
            student(portion.batch.input)
    except _AllSeenError:
        pass
    return done


def _rows(call: Call, sample: Sample, bias: int) -> Rows:
    operator = call.operator
    if isinstance(operator, Statistics):
        message = "running statistics have no rows"
        raise TypeError(message)
    given = call.given()
    values = operator.rows(given, sample.places, sample.size, call.weight.shape)
    missing = sample.values - values_at(call.output, sample.places, operator.channel_dim)
    return Rows(values, _by_group(missing, len(values)), sample.held, bias)


def _by_group(values: Tensor, groups: int) -> Tensor:
    return torch.unflatten(values.double(), 1, (groups, -1)).movedim(1, 0)


def _linear(layer: Layer) -> LinearOperator:
    if isinstance(layer.operator, Statistics):
        message = "running statistics are not linear"
        raise TypeError(message)
    return layer.operator


def _written(student: nn.Module, layer: Layer) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for place in (layer.place, *layer.biases):
        stored |= place.stored(student)
    return stored


def _restore_(student: nn.Module, stored: dict[str, Tensor]) -> None:
    tensors = named_tensors(student)
    for name, value in stored.items():
        tensors[name].copy_(value)


def _verdict(layer: Layer, targets: Targets, before: float, after: float) -> LayerRefit:
    held = [s.values[s.held] for run in layer.runs for s in targets.samples[run]]
    wanted = torch.cat(held)
    if len(wanted) == 0:
        return LayerRefit(layer.path, 0.0, 0.0, accepted=False)
    scale = float((wanted - wanted.mean(0)).square().sum()) or float(wanted.numel())
    before, after = before / scale, after / scale
    accepted = before > _ROUNDING and after < (1 - _LEAST_GAIN) * before
    return LayerRefit(layer.path, before, after, accepted)


def _refit_statistics_(student: nn.Module, layer: Layer, targets: Targets) -> LayerRefit:
    (run,) = list(layer.runs)[:1]
    sums: dict[str, Moments] = {}
    found: list[Tensor] = []
    norms: list[Normalization] = []
    for portion, sample in zip(targets.portions, targets.samples[run], strict=True):
        given, norm = _read_by_norm(student, run, portion.batch.input)
        add_moments_(sums, layer.path, portion.fitting_part(given))
        found.append(values_at(given, sample.places, layer.operator.channel_dim)[sample.held])
        norms.append(norm)
    norm, rows = norms[0], torch.cat(found)
    wanted = torch.cat([s.values[s.held] for s in targets.samples[run]])
    mean, variance = norm.moved(targets.inputs[layer.path], sums[layer.path])
    before = wanted - norm(rows, norm.mean.double(), norm.variance.double())
    after = wanted - norm(rows, mean, variance)
    verdict = _verdict(layer, targets, float(before.square().sum()), float(after.square().sum()))
    if verdict.accepted:
        norm.mean.copy_(mean)
        norm.variance.copy_(variance)
    return verdict


def _read_by_norm(student: nn.Module, run: RunId, example: Tensor) -> tuple[Tensor, Normalization]:
    ledger, found = Ledger(student), list[tuple[Tensor, Normalization]]()

    def visit(call: Call) -> None:
        if ledger.enter(call) == run and call.norm is not None:
            found.append((call.given(), call.norm))
            raise _AllSeenError

    try:
        with Watch(visit):
            student(example)
    except _AllSeenError:
        pass
    return found[0]

"""Refit of one layer: what it reads in the student, what it should return, and the verdict."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.refit.calls import Call, Watch
from coa_compress.refit.operators import LinearOperator, Operator, Statistics, values_at
from coa_compress.refit.plan import Layer
from coa_compress.refit.sampling import Sample
from coa_compress.refit.solve import Effort, FewRows, Fit, NormalEquations, Rows
from coa_compress.refit.statistics import Moments, Normalization
from coa_compress.refit.targets import Targets, add_moments_
from coa_compress.refit.tracing import Ledger, RunId
from coa_compress.structure.rebuild import named_tensors

_LEAST_GAIN = 1e-3
"""A layer is changed only if its error falls by at least this part."""
_BLOCK = 2048
"""Positions that are gathered at once."""
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


@dataclass(frozen=True, slots=True)
class Solver:
    """How the system of a layer is solved.

    Args:
        effort: From how many rows, and in which way.
        ridges: Strengths of the pull to the present weights that are tried.
    """

    effort: Effort
    ridges: Sequence[float]

    def best(self, layer: Layer, rows: Iterable[Rows]) -> Fit:
        """Return the change of a layer's weights that leaves least on the rows that judge."""
        system = (NormalEquations if self.effort.multiplied_out else FewRows)(len(layer.biases))
        for some in rows:
            system.add_(some)
        return system.best(self.ridges)


def refit_layer_(student: nn.Module, layer: Layer, targets: Targets, solver: Solver) -> LayerRefit:
    """Refit one layer of a student in place, if that helps; return what became of it.

    The student runs as far as the last run of the layer, once for each batch.

    Args:
        student: In evaluation mode; all layers before this one are refitted already.
        layer: The layer.
        targets: What the teacher has there.
        solver: How the system is solved.
    """
    if isinstance(layer.operator, Statistics):
        return _refit_statistics_(layer, targets, _calls(student, layer, targets))
    fit = solver.best(layer, _rows_of_runs(student, layer, targets))
    verdict = _verdict(layer, targets, fit.error_before, fit.error)
    if verdict.accepted:
        before = _written(student, layer)
        _write_(student, layer, fit)
        if layer.place.computed or len(layer.runs) > 1:
            after = held_error(student, layer, targets)
            verdict = _verdict(layer, targets, fit.error_before, after)
            if not verdict.accepted:
                _restore_(student, before)
    return verdict


def refit_in_passing_(
    student: nn.Module,
    layers: Sequence[Layer],
    targets: Targets,
    solvers: Mapping[str, Solver],
    tell: Callable[[LayerRefit], None],
) -> None:
    """Refit layers in place while the student runs once.

    Each is refitted when it is called, and called again, so that all behind it sees what it
    returns then: the same as ``refit_layer_`` of one after the other, in one run.

    Args:
        student: In evaluation mode; all layers before these are refitted already.
        layers: In the order of execution; each has one run, and its weight is a parameter.
        targets: Of one batch with all examples.
        solvers: How the system of each is solved, by path.
        tell: Called with what became of each layer.
    """
    (portion,) = targets.portions
    waiting = {next(iter(layer.runs)): layer for layer in layers}
    ledger = Ledger(student)

    def visit(call: Call) -> bool:
        run = ledger.enter(call)
        layer = waiting.pop(run, None)
        if layer is None:
            return False
        (sample,) = targets.samples[run]
        if isinstance(layer.operator, Statistics):
            verdict = _refit_statistics_(layer, targets, [call])
        else:
            fit = solvers[layer.path].best(layer, _rows(call, sample, layer.runs[run]))
            verdict = _verdict(layer, targets, fit.error_before, fit.error)
            if verdict.accepted:
                _write_(student, layer, fit)
        tell(verdict)
        if not waiting:
            raise _AllSeenError
        return verdict.accepted

    with suppress(_AllSeenError), Watch(visit):
        student(portion.batch.input)


def held_error(student: nn.Module, layer: Layer, targets: Targets) -> float:
    """Return the sum of squares that a layer is off, on the positions that judge."""
    rows = _rows_of_runs(student, layer, targets)
    return sum(float(some.residual[:, some.held].square().sum()) for some in rows)


def _rows_of_runs(student: nn.Module, layer: Layer, targets: Targets) -> Iterator[Rows]:
    """Yield what the runs of a layer read in the student, and what is missing behind them."""
    for number, calls in enumerate(_calls_by_portion(student, layer, targets)):
        for run, call in calls.items():
            yield from _rows(call, targets.samples[run][number], layer.runs[run])


def _calls(student: nn.Module, layer: Layer, targets: Targets) -> Iterator[Call]:
    """Yield the first call of a layer in the student, on each batch."""
    first = next(iter(layer.runs))
    return (calls[first] for calls in _calls_by_portion(student, layer, targets))


def _calls_by_portion(
    student: nn.Module, layer: Layer, targets: Targets
) -> Iterator[dict[RunId, Call]]:
    """Yield the calls of a layer in the student, batch after batch."""
    for portion in targets.portions:
        ledger, found = Ledger(student), dict[RunId, Call]()

        def visit(call: Call, ledger: Ledger = ledger, found: dict[RunId, Call] = found) -> bool:
            run = ledger.enter(call)
            if run in layer.runs:
                found[run] = call
                if len(found) == len(layer.runs):
                    raise _AllSeenError
            return False

        with suppress(_AllSeenError), Watch(visit):
            student(portion.batch.input)
        yield found


def _rows(call: Call, sample: Sample, bias: int) -> Iterator[Rows]:
    operator, given = _linear(call.operator), call.given()
    for part in sample.blocks(_BLOCK):
        values = operator.rows(given, part.places, part.size, call.weight.shape)
        missing = part.values - values_at(call.output, part.places, operator.channel_dim)
        yield Rows(values, _by_group(missing, len(values)), part.held, bias)


def _by_group(values: Tensor, groups: int) -> Tensor:
    return torch.unflatten(values.double(), 1, (groups, -1)).movedim(1, 0)


def _linear(operator: Operator) -> LinearOperator:
    if isinstance(operator, Statistics):
        message = "running statistics are not linear"
        raise TypeError(message)
    return operator


def _write_(student: nn.Module, layer: Layer, fit: Fit) -> None:
    if fit.update is None:
        return
    layer.place.add_(student, _linear(layer.operator).weight(fit.update, layer.shape))
    for bias, shift in zip(layer.biases, fit.shifts, strict=True):
        bias.add_(student, shift.flatten())


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


def _refit_statistics_(layer: Layer, targets: Targets, calls: Iterable[Call]) -> LayerRefit:
    """Move the statistics of a normalization, given its call on each batch."""
    (run,) = list(layer.runs)[:1]
    sums: dict[str, Moments] = {}
    found: list[Tensor] = []
    norms: list[Normalization] = []
    for portion, sample, call in zip(targets.portions, targets.samples[run], calls, strict=True):
        given = call.given()
        add_moments_(sums, layer.path, portion.fitting_part(given))
        found.append(values_at(given, sample.places, layer.operator.channel_dim)[sample.held])
        norms += [] if call.norm is None else [call.norm]
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

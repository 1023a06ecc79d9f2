"""Refit of a cut student to its teacher, layer after layer, without training."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch, Cut
from coa_compress.errors import SettingError
from coa_compress.profiling.modes import evaluating
from coa_compress.protocols import Progress, no_progress
from coa_compress.refit.linear_maps import (
    LinearMap,
    add_to_weight_,
    input_rows,
    is_linear_map,
    weight_matrices,
)
from coa_compress.refit.plan import plan_layers
from coa_compress.refit.sampling import Sample, input_of, portions_of, values_at
from coa_compress.refit.solve import best_update
from coa_compress.refit.statistics import (
    Moments,
    Norm,
    has_statistics,
    moved_statistics,
    normalize_rows,
    running_statistics,
    set_statistics_,
)
from coa_compress.refit.targets import Targets, add_moments_, observe_teacher

_PULLS = (1.0, 1e2, 1e4)
"""Strengths of the pull that are tried on each layer, relative to the one asked for."""
_LEAST_GAIN = 1e-3
"""A layer is changed only if its error falls by at least this part."""
_ROUNDING = 1e-10
"""Relative squared errors below this are rounding in single precision."""


@dataclass(frozen=True, slots=True)
class LayerRefit:
    """What became of one layer.

    Args:
        path: The layer.
        error_before: Mean squared error against the teacher on held-out positions, relative to
            the variance of the teacher's output there; all layers before it are refitted already.
        error_after: The same with the new weights.
        accepted: Whether the new weights are used: whether the error fell.
    """

    path: str
    error_before: float
    error_after: float
    accepted: bool


@dataclass(frozen=True, slots=True, eq=False)
class RefitResult:
    """A refitted student.

    Args:
        student: A new module.
        layers: Every layer that was tried, in the order of execution.
        skipped: Why a cut layer was not tried, by path.
    """

    student: nn.Module
    layers: tuple[LayerRefit, ...]
    skipped: Mapping[str, str]


def refit(
    teacher: nn.Module,
    cut: Cut,
    batches: Sequence[Batch],
    *,
    ridge: float = 1e-4,
    positions: int = 4096,
    progress: Progress = no_progress,
) -> RefitResult:
    """Return a copy of the student whose layers reproduce what they computed in the teacher.

    A layer that reads fewer channels than before has lost part of its input. What the kept
    channels can tell about the removed ones is moved into its weights by least squares:
    over sampled positions of the calibration examples, its output from the *student's* input is
    fitted to the *teacher's* output in the kept channels (He et al. 2017, arXiv:1707.06168;
    Luo et al. 2017, arXiv:1707.06342). Layers go in the order of execution, so that each one
    also corrects what the ones before it could not. The penalty pulls towards the present weights;
    where positions are few for the number of weights, a stronger one judges better and is taken.
    Running statistics of batch normalizations follow in the same order.

    A fifth of the examples judges: a layer keeps its weights unless the error there falls.
    Convolutions (any padding, stride, dilation, groups), transposed convolutions and linear layers
    are refitted; layers that run more than once, or share their weight, are not.

    Args:
        teacher: The network before the cut; unchanged.
        cut: The cut; its student is unchanged.
        batches: Calibration examples; targets are not used.
        ridge: Strength of the pull, relative to the mean square of a feature; from 0. A hundred
            and ten thousand times as much are tried too.
        positions: Most positions that are sampled of each layer's output.
        progress: Called after each layer.

    Raises:
        SettingError: If there is no example, or a setting is out of range.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1))
    >>> with torch.no_grad(): _ = net[0].weight[3].copy_(net[0].weight[2])
    >>> small = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    >>> kept = torch.arange(3)
    >>> for path in ("0.weight", "0.bias"):
    ...     small.get_parameter(path).data = net.get_parameter(path).detach()[kept].clone()
    >>> small[1].weight.data = net[1].weight.detach()[:, kept].clone()
    >>> cut = Cut(small, {"0.weight": {0: kept}, "0.bias": {0: kept}, "1.weight": {1: kept}}, ())
    >>> image = torch.rand(5, 3, 8, 8)
    >>> fitted = refit(net, cut, [Batch(image)], ridge=0.0).student
    >>> torch.allclose(fitted(image), net(image), atol=1e-4)
    True
    """
    _check(batches, ridge=ridge, positions=positions)
    student = copy.deepcopy(cut.student)
    if not cut.slices:
        return RefitResult(student, (), {})
    with torch.no_grad(), evaluating(student):
        reference = copy.deepcopy(teacher).eval()
        plan = plan_layers(reference, student, cut, batches[0].input)
        targets = observe_teacher(reference, plan, portions_of(batches, positions))
        layers: list[LayerRefit] = []
        for path in plan.paths:
            layers.append(_refit_layer_(student, path, targets, ridge))
            progress(len(layers), len(plan.paths), {"error": layers[-1].error_after})
    return RefitResult(student, tuple(layers), plan.skipped)


def _check(batches: Sequence[Batch], *, ridge: float, positions: int) -> None:
    if sum(len(batch.input) for batch in batches) == 0:
        message = "no example to refit with: give at least one calibration batch"
        raise SettingError(message)
    if ridge < 0:
        message = f"ridge must be at least 0, got {ridge}"
        raise SettingError(message)
    if positions < 1:
        message = f"positions must be at least 1, got {positions}"
        raise SettingError(message)


def _refit_layer_(student: nn.Module, path: str, targets: Targets, ridge: float) -> LayerRefit:
    module = student.get_submodule(path)
    if is_linear_map(module):
        return _refit_map_(student, path, module, targets, ridge)
    if has_statistics(module):
        return _refit_norm_(student, path, module, targets)
    message = f"layer {path!r} is a {type(module).__name__}, which cannot be refitted"
    raise TypeError(message)


def _refit_map_(
    student: nn.Module, path: str, module: LinearMap, targets: Targets, ridge: float
) -> LayerRefit:
    samples = targets.samples[path]
    rows = torch.cat(
        [
            input_rows(module, input_of(student, path, portion.batch.input), s.rows, s.size)
            for portion, s in zip(targets.portions, samples, strict=True)
        ],
        dim=1,
    ).double()
    wanted, held = _wanted(samples)
    matrices = weight_matrices(module).double()
    present = (rows @ matrices).movedim(0, 1).flatten(1)
    if module.bias is not None:
        present = present + module.bias.double()
    residual = (wanted - present).reshape(len(wanted), len(rows), -1).movedim(1, 0)
    best = best_update(
        rows,
        residual,
        held,
        ridges=[ridge * factor for factor in _PULLS],
        intercept=module.bias is not None,
    )
    verdict = _verdict(path, residual[:, held], best.left, wanted[held])
    if verdict.accepted:
        add_to_weight_(module, best.update, None if best.shift is None else best.shift.flatten())
    return verdict


def _refit_norm_(student: nn.Module, path: str, module: Norm, targets: Targets) -> LayerRefit:
    sums: dict[str, Moments] = {}
    found = []
    for portion, sample in zip(targets.portions, targets.samples[path], strict=True):
        given = input_of(student, path, portion.batch.input)
        add_moments_(sums, path, portion.fitting_part(given))
        found.append(values_at(given, sample.rows, last=False)[sample.held])
    rows = torch.cat(found)
    wanted, held = _wanted(targets.samples[path])
    moved = moved_statistics(module, targets.inputs[path], sums[path])
    before = wanted[held] - normalize_rows(module, rows, *running_statistics(module))
    after = wanted[held] - normalize_rows(module, rows, *moved)
    verdict = _verdict(path, before, after, wanted[held])
    if verdict.accepted:
        set_statistics_(module, *moved)
    return verdict


def _wanted(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    values = torch.cat([sample.values for sample in samples]).double()
    return values, torch.cat([sample.held for sample in samples])


def _verdict(path: str, before: Tensor, after: Tensor, wanted: Tensor) -> LayerRefit:
    spread = float(wanted.var(dim=0, correction=0).mean())
    scale = spread if spread > 0 else 1.0
    error_before = float(before.square().mean()) / scale
    error_after = float(after.square().mean()) / scale
    fell = error_before > _ROUNDING and error_after < (1 - _LEAST_GAIN) * error_before
    return LayerRefit(path, error_before, error_after, fell)

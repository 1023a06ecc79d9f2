"""Refit of a cut student to its teacher, layer after layer, without training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import nn

from coa_compress.artifacts import Batch, Cut
from coa_compress.copying import copied
from coa_compress.errors import SettingError
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.profiling.modes import evaluating
from coa_compress.protocols import Progress, no_progress
from coa_compress.refit.layers import LayerRefit, Solver, refit_in_passing_, refit_layer_
from coa_compress.refit.plan import Layer, plan_layers
from coa_compress.refit.sampling import portions_of
from coa_compress.refit.solve import effort
from coa_compress.refit.targets import Targets, observe_teacher
from coa_compress.refit.tracing import trace
from coa_compress.structure.torch_export import FAILURES

_PULLS = (1.0, 1e2, 1e4)
"""Strengths of the pull that are tried on each layer, relative to the one asked for."""


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


def refit(  # noqa: PLR0913 - each is a setting of its own
    teacher: nn.Module,
    cut: Cut,
    batches: Sequence[Batch],
    *,
    ridge: float = 1e-4,
    positions: int = 16384,
    max_memory_mb: float = 1024.0,
    max_activations_mb: float = 4096.0,
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
    Running statistics of batch normalizations follow in the same order, and so do factor and
    constant of the normalizations that measure their input themselves.

    A fifth of the examples judges: a layer keeps its weights unless the error there falls.
    What is refitted is found where it is called, in layers and in plain code: convolutions and
    transposed convolutions in one to three dimensions (any padding, stride, dilation, groups),
    linear layers, matrix products and einsum with a parameter. All calls of one weight are
    fitted together.

    The student runs once, on all examples together: each layer is refitted when it is called, and
    called again. It runs anew, batch after batch, for a layer that is called several times or whose
    weight is computed, and for every layer where the activations would not fit.

    Args:
        teacher: The network before the cut; unchanged.
        cut: The cut; its student is unchanged.
        batches: Calibration examples; targets are not used.
        ridge: Strength of the pull, relative to the mean square of a feature; from 0. A hundred
            and ten thousand times as much are tried too.
        positions: Most positions that are sampled of each layer's output.
        max_memory_mb: What the sampled rows and the matrices of one layer may take, in MiB;
            where features are many, positions are fewer.
        max_activations_mb: What the activations of the student on all examples may take, in MB of
            10**6 bytes.
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
    limits = {"max_memory_mb": max_memory_mb, "max_activations_mb": max_activations_mb}
    _check(batches, ridge=ridge, positions=positions, limits=limits)
    student = copied(cut.student)
    if not cut.slices:
        return RefitResult(student, (), {})
    with torch.no_grad(), evaluating(student):
        reference = copied(teacher).eval()
        plan = plan_layers(reference, student, cut, batches[0].input)
        ridges = [ridge * factor for factor in _PULLS]
        solvers = {
            layer.path: Solver(
                effort(positions, *layer.system, max_memory_mb=max_memory_mb), ridges
            )
            for layer in plan.layers
        }
        targets = observe_teacher(
            reference,
            plan,
            portions_of(batches),
            {path: solver.effort.positions for path, solver in solvers.items()},
        )
        joint = _joint(student, batches, targets, max_activations_mb)
        layers: list[LayerRefit] = []

        def tell(layer: LayerRefit) -> None:
            layers.append(layer)
            progress(len(layers), len(plan.layers), {"error": layer.error_after})

        for in_passing, some in groupby(plan.layers, key=partial(_is_single, joint)):
            if in_passing:
                refit_in_passing_(student, list(some), joint, solvers, tell)
                continue
            for layer in some:
                tell(refit_layer_(student, layer, targets, solvers[layer.path]))
    return RefitResult(student, tuple(layers), plan.skipped)


def _joint(
    student: nn.Module, batches: Sequence[Batch], targets: Targets, max_activations_mb: float
) -> Targets:
    """Return the targets of all examples in one batch; none where that does not run or fit."""
    nothing = Targets((), {}, {})
    if len({batch.input.shape[1:] for batch in batches}) > 1:
        return nothing
    if _activations_mb(student, batches) > max_activations_mb:
        return nothing
    try:
        runs = trace(student, torch.cat([batch.input for batch in batches]))
    except FAILURES:  # its code may know the size of the batch
        return nothing
    return targets.joined({(run.key, run.number): run.size for run in runs})


def _activations_mb(student: nn.Module, batches: Sequence[Batch]) -> float:
    """Return what a run on all examples takes beside the weights, in MB, told from one batch."""
    first = batches[0].input
    weights = sum(tensor.nbytes for tensor in (*student.parameters(), *student.buffers()))
    beside = peak_memory_mb(student, first) - weights / 1e6
    return beside * sum(len(batch.input) for batch in batches) / len(first)


def _is_single(joint: Targets, layer: Layer) -> bool:
    """Return whether a layer can be refitted while the student runs once."""
    if layer.place.computed or any(bias.computed for bias in layer.biases):
        return False
    return len(layer.runs) == 1 and next(iter(layer.runs)) in joint.samples


def _check(
    batches: Sequence[Batch], *, ridge: float, positions: int, limits: Mapping[str, float]
) -> None:
    if sum(len(batch.input) for batch in batches) == 0:
        message = "no example to refit with: give at least one calibration batch"
        raise SettingError(message)
    if ridge < 0:
        message = f"ridge must be at least 0, got {ridge}"
        raise SettingError(message)
    if positions < 1:
        message = f"positions must be at least 1, got {positions}"
        raise SettingError(message)
    for name, limit in limits.items():
        if limit <= 0:
            message = f"{name} must be above 0, got {limit}"
            raise SettingError(message)

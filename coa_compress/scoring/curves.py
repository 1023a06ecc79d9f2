"""How much the output changes when one group alone is cut: measured, not predicted."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch, Curves, Scores, SensitivityCurve
from coa_compress.copying import placed
from coa_compress.errors import ModelError, SettingError, StructureError
from coa_compress.profiling.modes import evaluating
from coa_compress.protocols import Progress, Structure, no_progress
from coa_compress.scoring.readers import Moments, input_moments, reader_paths
from coa_compress.scoring.reconstruction import compensate_
from coa_compress.scoring.sensitivity import output_tensors
from coa_compress.settings import PositiveInt, check_ranges

_LEAST_PART = 1 / 8
_FLOOR = 1e-9
"""The least scale that losses are relative to, for an output that does not vary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePlan:
    """How curves are measured.

    Args:
        n_widths: Widths below the full one that are measured, from an eighth to seven eighths.
        refit: Measure after the closed-form refit of the layers that read the group; see
            ``compensate_``.

    Raises:
        SettingError: If ``n_widths`` is below 1.
    """

    n_widths: PositiveInt = 5
    refit: bool = True

    def __post_init__(self) -> None:
        check_ranges(self)


DEFAULT_PLAN = CurvePlan()
"""Five widths, after the refit."""


def measure_curves(
    model: nn.Module,
    structure: Structure,
    scores: Scores,
    batches: Sequence[Batch],
    *,
    plan: CurvePlan = DEFAULT_PLAN,
    progress: Progress = no_progress,
) -> Curves:
    """Return the loss that cutting each group alone causes, at a few of its widths.

    The network is really cut, the lowest scores first, and run on the examples. The loss is the
    mean squared change of the output, relative to the variance of the output: 1 means that the
    output tells no more than its mean would. It needs no ground truth. Losses never fall as
    channels go: where a narrower cut is better by chance, the wider one gets its loss too.

    Args:
        model: The teacher, which the structure belongs to; unchanged.
        structure: Its groups and cuts.
        scores: Which channels of a group go first, shape ``(n_channels,)`` by group name.
        batches: Examples; targets are not used. What is removed is told by what stays from all of
            them; the loss is measured on the first.
        plan: How many widths, and whether after a refit.
        progress: Called after each group.

    Raises:
        SettingError: If there is no example.
        StructureError: If a group has no scores.
        ModelError: If the output is not finite.

    >>> from coa_compress.structure.analysis import analyze
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)).eval()
    >>> image = torch.rand(1, 3, 8, 8)
    >>> curves = measure_curves(net, analyze(net, image), {"0": torch.rand(8)}, [Batch(image)])
    >>> curves["0"].widths, curves["0"].losses[-1]
    ((1, 2, 4, 6, 7, 8), 0.0)
    """
    _check(structure, scores, batches)
    with evaluating(model):
        judged = batches[0].input
        expected = [tensor.double() for tensor in _values(model(judged))]
        scale = max(sum(float((t - t.mean()).square().sum()) for t in expected), _FLOOR)
        moments = _moments(model, structure, batches) if plan.refit else {}
        curves: dict[str, SensitivityCurve] = {}
        for group in structure.groups:
            widths = curve_widths(group.n_channels, plan.n_widths)
            losses = []
            order = torch.argsort(scores[group.name].cpu(), descending=True, stable=True)
            for width in widths[:-1]:
                cut = structure.cut({group.name: order[:width].sort().values})
                compensate_(cut, model, moments)
                with evaluating(placed(cut.student, judged.device)) as student:
                    changed = zip(expected, _values(student(judged)), strict=True)
                    losses.append(sum(float((a - b).square().sum()) for a, b in changed) / scale)
            curves[group.name] = _curve(group.name, widths, losses)
            progress(len(curves), len(structure.groups), {"loss": losses[0] if losses else 0.0})
    return curves


def curve_widths(n_channels: int, n_widths: int) -> tuple[int, ...]:
    """Return the widths to measure: from an eighth to seven eighths, denser to both ends; the full.

    >>> curve_widths(64, 5), curve_widths(64, 1), curve_widths(3, 5), curve_widths(1, 5)
    ((8, 18, 32, 46, 56, 64), (8, 64), (1, 2, 3), (1,))
    """
    most = math.log(1 / _LEAST_PART - 1)
    logits = np.linspace(-most, most, n_widths) if n_widths > 1 else np.array([-most])
    inner = {max(1, round(n_channels / (1 + math.exp(-logit)))) for logit in logits}
    return (*sorted(width for width in inner if width < n_channels), n_channels)


def _curve(name: str, widths: tuple[int, ...], losses: Sequence[float]) -> SensitivityCurve:
    if not all(map(math.isfinite, losses)):
        message = (
            f"the output is not finite with group {name!r} cut: leave it out with "
            f"exclude, or check the network on its calibration batches"
        )
        raise ModelError(message)
    rising = np.maximum.accumulate([0.0, *reversed(losses)])[::-1]
    return SensitivityCurve(widths, tuple(float(loss) for loss in rising))


def _moments(
    model: nn.Module, structure: Structure, batches: Sequence[Batch]
) -> dict[str, Moments]:
    places = reader_paths(model, structure.groups)
    return input_moments(model, sorted({p for read in places.values() for p in read}), batches)


def _values(output: object) -> Iterator[Tensor]:
    return (tensor.double() for tensor in output_tensors(output) if tensor.is_floating_point())


def _check(structure: Structure, scores: Scores, batches: Sequence[Batch]) -> None:
    if not batches or not len(batches[0].input):
        message = "no example to measure curves on: give at least one calibration batch"
        raise SettingError(message)
    missing = [group.name for group in structure.groups if group.name not in scores]
    if missing:
        message = f"no scores for group {missing[0]!r}: score every group before measuring"
        raise StructureError(message)

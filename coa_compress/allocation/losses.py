"""The loss that each group is expected to cause at each of its widths."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from coa_compress.artifacts import ChannelGroup, Curves, ExpectedLosses, Scores, SensitivityCurve
from coa_compress.errors import StructureError

_CROWDING = 2
"""Exponent of the penalty for taking much of one group; see ``removal_losses``."""


def expected_losses(
    groups: Sequence[ChannelGroup], scores: Scores, curves: Curves | None = None
) -> ExpectedLosses:
    """Return what each group is expected to lose at each width.

    Measured curves are taken where there are any: they say what really happens. Without them the
    scores of the channels that would go are added up by ``removal_losses``.

    Args:
        groups: The channel groups.
        scores: Shape ``(n_channels,)`` for each group.
        curves: Measured sensitivity of every group, or None.

    Raises:
        StructureError: If a group has no scores or no curve, or those of another width.

    >>> import torch
    >>> group = ChannelGroup("a", 2, ())
    >>> expected_losses([group], {"a": torch.tensor([1.0, 3.0])})["a"].tolist()
    [16.0, 4.0, 0.0]
    >>> curve = SensitivityCurve(widths=(1, 2), losses=(0.5, 0.0))
    >>> expected_losses([group], {}, {"a": curve})["a"].tolist()
    [0.5, 0.5, 0.0]
    """
    if curves is None:
        for group in groups:
            _check_scores(group, scores)
        return {g.name: removal_losses(scores[g.name].double().cpu().numpy()) for g in groups}
    for group in groups:
        _check_curve(group, curves)
    return {group.name: curve_losses(curves[group.name]) for group in groups}


def removal_losses(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the loss that a group is expected to cause at each width.

    ``loss[w]`` is the sum of the ``n - w`` lowest scores times ``(n / w) ** 2``. Scores say what
    one channel matters while all others are there; the fewer are left, the less can they stand in
    for those that went, so that the sum alone would empty single layers.

    Args:
        scores: Shape ``(n_channels,)``, from 0.

    Returns:
        Shape ``(n_channels + 1,)``, never rising with the width; 0 at the full width.

    >>> removal_losses(np.array([1.0, 1.0, 2.0, 4.0])).tolist()
    [128.0, 64.0, 8.0, 1.7777777777777777, 0.0]
    """
    n_channels = len(scores)
    removed = np.concatenate([np.cumsum(np.sort(scores))[::-1], [0.0]])
    widths = np.maximum(np.arange(n_channels + 1), 1)
    losses: NDArray[np.float64] = removed * (n_channels / widths) ** _CROWDING
    return losses


def curve_losses(curve: SensitivityCurve) -> NDArray[np.float64]:
    """Return the loss at every width from one that was measured at some.

    A loss that falls where the width falls is noise and is raised to that of the next wider one.
    Between two measured widths the logarithm of the loss is interpolated, or the loss itself
    where one of them is 0, as at the full width. Below the least measured width the loss goes on
    as steeply as between the last two, at least with the square of ``1 / width``.

    Args:
        curve: Widths and losses; the last width is the full one.

    Returns:
        Shape ``(n_channels + 1,)``, never rising with the width; 0 at the full width.

    >>> curve_losses(SensitivityCurve(widths=(2, 4, 5), losses=(0.4, 0.1, 0.0))).round(3).tolist()
    [1.6, 1.6, 0.4, 0.2, 0.1, 0.0]
    """
    measured = np.maximum.accumulate(np.maximum(curve.losses, 0.0)[::-1])[::-1]
    measured[-1] = 0.0
    losses = np.zeros(curve.widths[-1] + 1)
    for (low, a), (high, b) in pairwise(zip(curve.widths, measured.tolist(), strict=True)):
        part = (np.arange(low, high + 1) - low) / (high - low)
        between = a ** (1 - part) * b**part if b > 0 else a + (b - a) * part
        losses[low : high + 1] = between
    least = curve.widths[0]
    if least > 0:
        losses[:least] = _below(curve.widths, measured)
    return np.asarray(np.maximum.accumulate(losses[::-1])[::-1])


def _below(widths: Sequence[int], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    least = widths[0]
    under = np.arange(least)
    grown = (least / np.maximum(under, 1)) ** 2.0
    if len(widths) > 1 and measured[1] > 0:
        steepness = np.log(measured[0] / measured[1]) / (widths[1] - least)
        grown = np.maximum(grown, np.exp(np.minimum(steepness * (least - under), 50.0)))
    below: NDArray[np.float64] = measured[0] * grown
    return below


def _check_scores(group: ChannelGroup, scores: Scores) -> None:
    if group.name not in scores:
        message = f"no scores for group {group.name!r}: score every group before allocating"
        raise StructureError(message)
    shape = tuple(scores[group.name].shape)
    if shape != (group.n_channels,):
        message = (
            f"scores of group {group.name!r} have shape {shape}, "
            f"expected ({group.n_channels},): score the network that was analyzed"
        )
        raise StructureError(message)


def _check_curve(group: ChannelGroup, curves: Curves) -> None:
    if group.name not in curves:
        message = f"no sensitivity curve for group {group.name!r}: measure every group or none"
        raise StructureError(message)
    full = curves[group.name].widths[-1]
    if full != group.n_channels:
        message = (
            f"the sensitivity curve of group {group.name!r} ends at {full} channels, "
            f"expected {group.n_channels}: measure the network that was analyzed"
        )
        raise StructureError(message)

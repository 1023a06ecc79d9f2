"""The loss that each group is expected to cause at each of its widths."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coa_compress.artifacts import ChannelGroup, Curves, ExpectedLosses, Scores
from coa_compress.curves import curve_losses
from coa_compress.errors import StructureError

_CROWDING = 2
"""Exponent of the penalty for taking much of one group; see ``removal_losses``."""


def expected_losses(
    groups: Sequence[ChannelGroup],
    scores: Scores,
    curves: Curves | None = None,
    *,
    evenness: float = 0.0,
) -> ExpectedLosses:
    """Return what each group is expected to lose at each width.

    Measured curves are taken where there are any: they say what really happens. Without them the
    scores of the channels that would go are added up by ``removal_losses``.

    Args:
        groups: The channel groups.
        scores: Shape ``(n_channels,)`` for each group.
        curves: Measured sensitivity of every group, or None.
        evenness: How far groups are taken to lose alike, from 0 to 1; see ``evened``.

    Raises:
        StructureError: If a group has no scores or no curve, or those of another width.

    >>> import torch
    >>> group = ChannelGroup("a", 2, ())
    >>> expected_losses([group], {"a": torch.tensor([1.0, 3.0])})["a"].tolist()
    [16.0, 4.0, 0.0]
    >>> from coa_compress.artifacts import SensitivityCurve
    >>> curve = SensitivityCurve(widths=(1, 2), losses=(0.5, 0.0))
    >>> expected_losses([group], {}, {"a": curve})["a"].tolist()
    [0.5, 0.5, 0.0]
    """
    if curves is None:
        for group in groups:
            _check_scores(group, scores)
        losses = {g.name: removal_losses(scores[g.name].double().cpu().numpy()) for g in groups}
        return evened(losses, evenness)
    for group in groups:
        _check_curve(group, curves)
    return evened({group.name: curve_losses(curves[group.name]) for group in groups}, evenness)


def evened(losses: ExpectedLosses, evenness: float) -> ExpectedLosses:
    """Return the losses with groups closer to each other in what they lose in all.

    Losses say what cutting does before anything is trained. A distillation repairs most where most
    is lost, so that what is left of the differences between groups is smaller: each group is
    divided by ``(t / mean) ** evenness``, where ``t`` is the loss of all its channels, without the
    penalty for taking many, and ``mean`` that of all groups.

    Args:
        losses: Of each group at each width.
        evenness: From 0, which returns the losses as they are, to 1: all groups lose the same.

    >>> losses = {"a": np.array([16.0, 4.0, 0.0]), "b": np.array([64.0, 8.0, 0.0])}
    >>> {name: loss.tolist() for name, loss in evened(losses, 1.0).items()}
    {'a': [40.0, 10.0, 0.0], 'b': [40.0, 5.0, 0.0]}
    """
    if not evenness:
        return losses
    totals = {
        name: float(loss[0]) / max(len(loss) - 1, 1) ** _CROWDING for name, loss in losses.items()
    }
    positive = [total for total in totals.values() if total > 0]
    mean = sum(positive) / max(len(positive), 1)
    return {
        name: loss / (totals[name] / mean) ** evenness if totals[name] > 0 else loss
        for name, loss in losses.items()
    }


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

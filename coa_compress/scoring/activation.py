"""Scores from the size of what channels carry."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch, ChannelGroup, Scores
from coa_compress.errors import ModelError, SettingError
from coa_compress.protocols import Loss
from coa_compress.scoring.magnitude import score_magnitude
from coa_compress.scoring.readers import Moments, input_moments, reader_paths
from coa_compress.scoring.slices import check_members


def score_activation(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], loss: Loss
) -> Scores:
    """Score each channel by the mean square of its activation where it is read.

    The activation criterion of Molchanov et al. 2017 (arXiv:1611.06440), with the square in place
    of the absolute value. It is taken at the input of every layer that reads the channel, over
    positions of the calibration examples, and divided by its mean over the channels of the group,
    so that a layer with large values does not drown the others. As for ``score_magnitude``, the
    mean score of a group is 1, and comparing channels of different groups is a heuristic.
    A group that no layer reads with all its outputs has the score of ``score_magnitude``.

    Args:
        model: The teacher.
        groups: Its channel groups.
        batches: Examples; targets are not used.
        loss: Not used.

    Returns:
        Shape ``(n_channels,)`` by group name, float64, on the CPU.

    Raises:
        SettingError: If there is no example.
        ModelError: If an activation is not finite.
        StructureError: If a group names a tensor that is not in the model.

    >>> from coa_compress.artifacts import Member
    >>> net = nn.Sequential(nn.Conv2d(2, 1, 1))
    >>> group = ChannelGroup("in", 2, (Member("0.weight", 1, "input", torch.arange(2)[:, None]),))
    >>> batch = Batch(torch.tensor([1.0, 2.0]).view(1, 2, 1, 1))
    >>> score_activation(net, [group], [batch], lambda output, batch: output.sum())["in"].tolist()
    [0.4, 1.6]
    """
    check_members(model, groups)
    if not any(len(batch.input) for batch in batches):
        message = "no example to score channels with: give at least one calibration batch"
        raise SettingError(message)
    places = reader_paths(model, groups)
    paths = sorted({path for read in places.values() for path in read})
    moments = input_moments(model, paths, batches)
    unread = [group for group in groups if not set(places[group.name]) & set(moments)]
    scores = dict(score_magnitude(model, unread, batches, loss))
    for group in groups:
        found = [
            _relative(moments[path], positions)
            for path, positions in places[group.name].items()
            if path in moments
        ]
        if found:
            scores[group.name] = _checked(torch.stack(found).mean(0), group.name)
    return scores


def _relative(moments: Moments, positions: Tensor) -> Tensor:
    squares = moments.products.diagonal()[positions].sum(1)
    mean = squares.mean()
    return squares / mean if mean != 0 else squares


def _checked(scores: Tensor, name: str) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        message = (
            f"scores of group {name!r} are not finite: the network is not finite on the "
            "calibration batches"
        )
        raise ModelError(message)
    return scores

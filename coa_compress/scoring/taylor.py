"""Scores from the first-order change of the loss."""

import logging
from collections.abc import Sequence

from torch import nn

from coa_compress.artifacts import Batch, ChannelGroup, Scores
from coa_compress.protocols import Loss
from coa_compress.scoring.contributions import mean_squared_contributions
from coa_compress.scoring.sensitivity import score_output_sensitivity

_LOG = logging.getLogger(__name__)


def score_taylor(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], loss: Loss
) -> Scores:
    """Score each channel by the mean squared first-order change of the loss when it is removed.

    Removing a channel sets the weights ``w`` that read it to zero, which changes the loss by
    ``-sum(w * dL/dw)`` to first order (Molchanov et al. 2019, arXiv:1906.10771, as a gate at the
    readers). As a reader is linear in its weights and in its input ``a``, the sum equals
    ``sum(a * dL/da)`` over all positions of the channel: activation times gradient. It is taken
    over all readers of a group at once, for one example at a time, then squared and averaged.
    Groups without a reader use the filters that write the channel, and their biases.

    Without ground truth, or when every gradient is exactly zero because the target is the
    network's own output, ``score_output_sensitivity`` is returned instead.

    Args:
        model: The teacher.
        groups: Its channel groups.
        batches: Examples with targets.
        loss: What the removal must not raise.

    Returns:
        Shape ``(n_channels,)`` by group name, float64, on the CPU.

    Raises:
        SettingError: If there is no example.
        ModelError: If a gradient is not finite.
        StructureError: If a group names a tensor that is not in the model.

    >>> import torch
    >>> from coa_compress.artifacts import Member
    >>> net = nn.Conv2d(2, 1, 1, bias=False)
    >>> with torch.no_grad(): _ = net.weight.copy_(torch.tensor([1.0, 3.0]).view(1, 2, 1, 1))
    >>> member = Member("weight", 1, "input", torch.arange(2)[:, None])
    >>> batch = Batch(torch.ones(1, 2, 1, 1), torch.zeros(1, 1, 1, 1))
    >>> score_taylor(
    ...     net, [ChannelGroup("in", 2, (member,))], [batch],
    ...     lambda output, batch: (output - batch.target).sum(),
    ... )["in"].tolist()
    [1.0, 9.0]
    """
    if any(batch.target is None for batch in batches):
        _LOG.info("no ground truth: channels are scored by the change of the output")
        return score_output_sensitivity(model, groups, batches, loss)
    scores = mean_squared_contributions(
        model, groups, batches, lambda output, batch: (loss(output, batch),)
    )
    if groups and all(float(score.sum()) == 0.0 for score in scores.values()):
        _LOG.info("the loss has no gradient: channels are scored by the change of the output")
        return score_output_sensitivity(model, groups, batches, loss)
    return scores

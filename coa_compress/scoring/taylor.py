"""Scores from the first-order change of the loss."""

import logging
from collections.abc import Sequence

from torch import nn

from coa_compress.artifacts import Batch, ChannelGroup, Scores
from coa_compress.protocols import Loss
from coa_compress.scoring.contributions import Contributions, contributions
from coa_compress.scoring.sensitivity import score_output_sensitivity

_LOG = logging.getLogger(__name__)


def score_taylor(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], loss: Loss
) -> Scores:
    """Score each channel by the squared first-order change of the loss when it is removed.

    Removing a channel sets the weights ``w`` that read it to zero, which changes the loss by
    ``-sum(w * dL/dw)`` to first order. ``L`` is the mean loss over all examples, and the change is
    squared (Molchanov et al. 2019, arXiv:1906.10771, as a gate at the readers). As a reader is
    linear in its weights and in its input ``a``, the sum equals ``sum(a * dL/da)`` over all
    positions of the channel: activation times gradient. It is taken over all readers of a group at
    once. Groups without a reader use the filters that write the channel, and their biases.
    At a minimum of the loss the first order vanishes; ``score_fisher`` does not.

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
    >>> batch = Batch(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 2, 1, 1), torch.ones(2))
    >>> score_taylor(
    ...     net, [ChannelGroup("in", 2, (member,))], [batch],
    ...     lambda output, batch: output.sum(),
    ... )["in"].tolist()
    [0.0, 0.0]
    """
    found = loss_contributions(model, groups, batches, loss)
    if found is None:
        return score_output_sensitivity(model, groups, batches, loss)
    return {name: mean.square() for name, mean in found.means.items()}


def loss_contributions(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], loss: Loss
) -> Contributions | None:
    """Return mean and mean squared contributions to the loss, or None if the loss tells nothing."""
    if any(batch.target is None for batch in batches):
        _LOG.info("no ground truth: channels are scored by the change of the output")
        return None
    found = contributions(model, groups, batches, lambda output, batch: (loss(output, batch),))
    if groups and all(float(score.sum()) == 0.0 for score in found.mean_squares.values()):
        _LOG.info("the loss has no gradient: channels are scored by the change of the output")
        return None
    return found

"""Scores from the second-order change of the loss."""

from collections.abc import Sequence

from torch import nn

from coa_compress.artifacts import Batch, ChannelGroup, Scores
from coa_compress.protocols import Loss
from coa_compress.scoring.sensitivity import score_output_sensitivity
from coa_compress.scoring.taylor import loss_contributions


def score_fisher(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], loss: Loss
) -> Scores:
    """Score each channel by the second-order change of the loss, with the empirical Fisher matrix.

    ``sum(c**2) / (2 * N)`` over the ``N`` examples, where ``c`` is the first-order change of the
    loss of one example, as in ``score_taylor``: activation times gradient, summed over all
    positions and all readers of the group before it is squared (Theis et al. 2018,
    arXiv:1801.05787, equation 7; Liu et al. 2021, arXiv:2108.00708, for coupled channels). The
    Fisher matrix stands for the Hessian of the loss by a gate on each channel, of which this is
    the diagonal. Changes of different sign do not cancel between examples.

    Without ground truth, or when every gradient is exactly zero because the target is the
    network's own output, ``score_output_sensitivity`` is returned instead: the same with the
    Gauss-Newton matrix of the squared change of the output.

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
    >>> score_fisher(
    ...     net, [ChannelGroup("in", 2, (member,))], [batch],
    ...     lambda output, batch: output.sum(),
    ... )["in"].tolist()
    [0.5, 4.5]
    """
    found = loss_contributions(model, groups, batches, loss)
    if found is None:
        return score_output_sensitivity(model, groups, batches, loss)
    return {name: mean_square / 2 for name, mean_square in found.mean_squares.items()}

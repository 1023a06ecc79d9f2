"""Scores from the weights alone."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch, ChannelGroup, Member, Scores
from coa_compress.protocols import Loss
from coa_compress.scoring.slices import channel_rows, check_members
from coa_compress.structure.rebuild import named_tensors


def score_magnitude(
    model: nn.Module, groups: Sequence[ChannelGroup], batches: Sequence[Batch], loss: Loss
) -> Scores:
    """Score each channel by the L1 norm of the weights that write and read it.

    The norm of a filter (Li et al. 2017, arXiv:1608.08710), taken over every weight that is cut
    with the channel (Fang et al. 2023, arXiv:2301.12900). Each member is divided by its mean over
    the channels, so that a large layer does not drown a small one; the mean score of a group
    is therefore 1, and comparing channels of different groups is a heuristic: it says how unusual
    a channel is in its group, not how much the group matters.

    Args:
        model: The teacher.
        groups: Its channel groups.
        batches: Not used.
        loss: Not used.

    Returns:
        Shape ``(n_channels,)`` by group name, float64, on the CPU.

    Raises:
        StructureError: If a group names a tensor that is not in the model.

    >>> net = nn.Conv2d(1, 2, 1)
    >>> _ = nn.init.constant_(net.weight, 1.0); _ = nn.init.constant_(net.weight[1], 3.0)
    >>> member = Member("weight", 0, "output", torch.arange(2)[:, None])
    >>> groups = [ChannelGroup("conv", 2, (member,))]
    >>> score_magnitude(net, groups, [], lambda output, batch: output.mean())["conv"].tolist()
    [0.5, 1.5]
    """
    del batches, loss
    check_members(model, groups)
    tensors = named_tensors(model)
    return {group.name: _group_magnitude(group, tensors) for group in groups}


def _group_magnitude(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    weights = [member for member in group.members if member.role != "other"]
    # raw parameters are all there is in a group that no weight writes or reads
    members = weights or list(group.members)
    total = torch.zeros(group.n_channels, dtype=torch.float64)
    for member in members:
        total += _relative_norms(tensors[member.tensor], member)
    return total / max(len(members), 1)


def _relative_norms(tensor: Tensor, member: Member) -> Tensor:
    norms = channel_rows(tensor.detach(), member).to(torch.float64).abs().sum(1).cpu()
    mean = norms.mean()
    return norms / mean if mean > 0 else norms

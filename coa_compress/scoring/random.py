"""Random scores: the control that every other scorer must beat."""

from collections.abc import Sequence

import torch
from torch import nn

from coa_compress.artifacts import Batch, ChannelGroup, Scores
from coa_compress.protocols import Loss


def score_random(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    batches: Sequence[Batch],
    loss: Loss,
    *,
    seed: int = 0,
) -> Scores:
    """Return independent uniform scores in [0, 1); the same seed gives the same scores.

    Args:
        model: Not used.
        groups: The channel groups.
        batches: Not used.
        loss: Not used.
        seed: Seed of the generator.

    Returns:
        Shape ``(n_channels,)`` by group name, float64, on the CPU.

    >>> group = ChannelGroup("conv", 3, ())
    >>> score_random(nn.Identity(), [group], [], lambda output, batch: output.mean())["conv"].shape
    torch.Size([3])
    """
    del model, batches, loss
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.rand(group.n_channels, generator=generator, dtype=torch.float64)
        for group in groups
    }

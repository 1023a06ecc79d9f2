"""The widths a group may have, and the channels that stay at a width."""

import torch
from torch import Tensor


def allowed_widths(n_channels: int, *, round_to: int, min_channels: int) -> tuple[int, ...]:
    """Return the widths a group may have, from the least to the full one.

    Args:
        n_channels: The full width, which is always allowed.
        round_to: Smaller widths are multiples of this.
        min_channels: Smaller widths are at least this.

    >>> allowed_widths(20, round_to=8, min_channels=8)
    (8, 16, 20)
    >>> allowed_widths(6, round_to=8, min_channels=8)
    (6,)
    """
    least = -(-min_channels // round_to) * round_to
    return (*range(least, n_channels, round_to), n_channels)


def select_channels(scores: Tensor, width: int) -> Tensor:
    """Return the channels with the highest scores; of equal ones the first.

    Args:
        scores: Shape ``(n_channels,)``.
        width: How many stay, in ``[0, n_channels]``.

    Returns:
        Sorted channel numbers, int64, shape ``(width,)``, on the CPU.

    >>> select_channels(torch.tensor([1.0, 3.0, 2.0, 3.0]), 3)
    tensor([1, 2, 3])
    """
    order = torch.argsort(scores.cpu(), descending=True, stable=True)
    return order[:width].sort().values

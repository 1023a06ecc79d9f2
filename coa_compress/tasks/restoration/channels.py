"""How many channels a network takes."""

import torch
from torch import nn

from coa_compress.errors import ModelError
from coa_compress.tasks.tiling import tried

_RGB = 3


def input_channels(model: nn.Module, size: tuple[int, int] = (64, 64)) -> int:
    """Return how many channels a network takes: as many as its first convolution or weight.

    A network that rearranges its input before that takes others: if it does not run, 3, 1 and 4
    are tried.

    Args:
        model: Any network.
        size: Height and width of an input that it can take.

    Raises:
        ModelError: If it has no weight of two dimensions or more.

    >>> input_channels(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 1, 1)))
    4
    >>> input_channels(nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 1)))
    3
    """
    first = _first_channels(model)
    usual = dict.fromkeys((first, _RGB, 1, 4))
    takes = (n for n in usual if tried(model, torch.zeros(1, n, *size)) is not None)
    return next(takes, first)


def _first_channels(model: nn.Module) -> int:
    for module in model.modules():
        channels = getattr(module, "in_channels", None)
        if isinstance(channels, int):
            return channels
    for parameter in model.parameters():
        if parameter.ndim > 1:
            return int(parameter.shape[1])
    message = f"{type(model).__name__} has no weights to infer its input from: give example=..."
    raise ModelError(message)

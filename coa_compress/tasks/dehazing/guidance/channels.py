"""Priors on the darkest and the brightest channel of a patch."""

from torch import Tensor
from torch.nn import functional

_PATCH = 7


def dark_channel(image: Tensor, *, patch: int = _PATCH) -> Tensor:
    """Return the least value of any channel in the patch around each pixel.

    Args:
        image: Shape ``(batch, channels, height, width)``.
        patch: Side of the patch, an odd number of pixels.

    Returns:
        Shape ``(batch, 1, height, width)``.
    """
    darkest = image.amin(dim=1, keepdim=True)
    return -functional.max_pool2d(-darkest, patch, stride=1, padding=patch // 2)


def dark_channel_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return the mean dark channel of the output, which is near 0 without haze.

    Dark channel prior (He et al. 2011, IEEE TPAMI 33(12), eq. 5): in most patches of a clear
    outdoor image some pixel has a channel near 0.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Not used; every prior has the same signature.

    Returns:
        A scalar in ``[0, 1]``.

    >>> import torch
    >>> dark_channel_loss(torch.full((1, 3, 8, 8), 0.25), torch.zeros(1, 3, 8, 8))
    tensor(0.2500)
    """
    del real
    return dark_channel(output.clamp(0, 1)).mean()


def bright_channel_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how far the mean bright channel of the output is from 1.

    Bright channel prior (Wang et al. 2013, ICIP, "Automatic local exposure correction using bright
    channel prior"): in most patches of a well exposed image some pixel has a channel near 1. It
    keeps a network that the dark channel guides from turning everything dark.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Not used; every prior has the same signature.

    Returns:
        A scalar in ``[0, 1]``.

    >>> import torch
    >>> bright_channel_loss(torch.full((1, 3, 8, 8), 0.25), torch.zeros(1, 3, 8, 8))
    tensor(0.7500)
    """
    del real
    brightest = output.clamp(0, 1).amax(dim=1, keepdim=True)
    return 1 - functional.max_pool2d(brightest, _PATCH, stride=1, padding=_PATCH // 2).mean()

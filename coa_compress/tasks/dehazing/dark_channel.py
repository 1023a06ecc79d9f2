"""Haze as the dark channel prior sees it."""

import torch
from torch import Tensor
from torch.nn import functional

_PATCH = 15
_SHIFTS = (1, 2, 4, 7)
_BRIGHTEST = 1000
_LEAST_LIGHT = 0.05


def dark_channel_density(image: Tensor) -> float:
    """Return the mean share of light that haze has replaced, by the dark channel prior.

    The mean over the image of ``min over a patch and the colors of I / A``, which is ``1 - t``
    where the prior holds (He, Sun & Tang 2011, IEEE TPAMI 33(12), eq. 11), in patches of 15 by 15
    pixels. The airlight ``A`` is the mean color of the thousandth of the pixels with the highest
    dark channel, so that making an image darker does not lower its density.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``, any size.

    Returns:
        In [0, 1]; lower is clearer. White and gray surfaces count as haze.

    >>> dark_channel_density(torch.full((3, 32, 32), 0.8))
    1.0
    """
    image = image.detach().float().clamp(0, 1)
    dark = _dark_channel(image).flatten()
    hazy = dark.topk(max(1, len(dark) // _BRIGHTEST)).indices
    airlight = image.flatten(1)[:, hazy].mean(dim=1).clamp(min=_LEAST_LIGHT)
    return float(_dark_channel(image / airlight[:, None, None]).clamp(max=1).mean())


def _dark_channel(image: Tensor) -> Tensor:
    darkest = functional.pad(image.amin(dim=0)[None], (_PATCH // 2,) * 4, mode="replicate")[0]
    return _least(_least(darkest, dim=0), dim=1)


def _least(values: Tensor, *, dim: int) -> Tensor:
    """Return the least of each window of 15 values along a dimension."""
    # windows of 2, 4 and 8 by halves, then two of 8 that overlap: a fifth of the time of pooling
    for shift in _SHIFTS:
        count = values.shape[dim] - shift
        values = torch.minimum(values.narrow(dim, 0, count), values.narrow(dim, shift, count))
    return values

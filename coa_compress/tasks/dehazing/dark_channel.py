"""Haze as the dark channel prior sees it."""

from torch import Tensor
from torch.nn import functional

_PATCH = 15
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

    >>> import torch
    >>> dark_channel_density(torch.full((3, 32, 32), 0.8))
    1.0
    """
    image = image.detach().float().clamp(0, 1)
    dark = _dark_channel(image).flatten()
    hazy = dark.topk(max(1, len(dark) // _BRIGHTEST)).indices
    airlight = image.flatten(1)[:, hazy].mean(dim=1).clamp(min=_LEAST_LIGHT)
    return float(_dark_channel(image / airlight[:, None, None]).clamp(max=1).mean())


def _dark_channel(image: Tensor) -> Tensor:
    darkest = functional.pad(image.amin(dim=0)[None], (_PATCH // 2,) * 4, mode="replicate")
    rows = functional.max_pool2d(-darkest, (_PATCH, 1), stride=1)
    return -functional.max_pool2d(rows, (1, _PATCH), stride=1)[0]

"""Sky, where the dark channel prior is wrong: what it looks like, and a prior that spares it."""

import torch
from torch import Tensor
from torch.nn import functional

_PATCH = 9
_FLAT = 0.02
_BRIGHT = 0.6
_SOFT = 0.05
_PALE = 0.35
_HORIZON = 0.6
_ALLOWED = 0.1


def sky_likeness(real: Tensor) -> Tensor:
    """Return how much each pixel looks like sky: smooth, bright, pale and high in the image.

    Args:
        real: Images, shape ``(batch, 3, height, width)``, values in ``[0, 1]``.

    Returns:
        Shape ``(batch, 1, height, width)``, in ``[0, 1]``.

    >>> sky_likeness(torch.full((1, 3, 32, 32), 0.9))[0, 0, :, 0].round()[[0, -1]]
    tensor([1., 0.])
    """
    gray = real.mean(dim=1, keepdim=True)
    mean, squares = _blurred(gray), _blurred(gray.square())
    deviation = (squares - mean.square()).clamp(min=0).sqrt()
    brightest, darkest = real.amax(dim=1, keepdim=True), real.amin(dim=1, keepdim=True)
    paleness = 1 - (brightest - darkest) / brightest.clamp(min=_SOFT)
    rows = torch.linspace(0, 1, real.shape[2], device=real.device, dtype=real.dtype)
    height = torch.sigmoid((_HORIZON - rows) / _SOFT)[None, None, :, None]
    flat = torch.sigmoid((_FLAT - deviation) / (_FLAT / 4))
    bright = torch.sigmoid((gray - _BRIGHT) / _SOFT)
    pale = torch.sigmoid((paleness - _PALE) / _SOFT)
    return flat * bright * pale * height


def sky_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how much the output darkens or tints what looks like sky in the input.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Their inputs, same shape.

    Returns:
        A scalar from 0: mean over all pixels of darkening beyond 0.1 and of change of color.

    >>> sky = torch.full((1, 3, 16, 16), 0.9)
    >>> sky_loss(sky, sky), bool(sky_loss(sky - 0.5, sky) > 0.1)
    (tensor(0.), True)
    """
    likeness = sky_likeness(real).detach()
    gray, before = output.mean(dim=1, keepdim=True), real.mean(dim=1, keepdim=True)
    darkening = functional.relu(before - gray - _ALLOWED)
    tint = ((output - gray) - (real - before)).abs().mean(dim=1, keepdim=True)
    return (likeness * (darkening + tint)).mean()


def _blurred(image: Tensor) -> Tensor:
    return functional.avg_pool2d(
        image, _PATCH, stride=1, padding=_PATCH // 2, count_include_pad=False
    )

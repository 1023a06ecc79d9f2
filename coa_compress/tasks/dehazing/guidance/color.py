"""Priors on exposure, contrast and color."""

from torch import Tensor
from torch.nn import functional

_MARGIN = 0.02
_PATCH = 8
_CONTRAST = 0.3
_EPSILON = 1e-4
_LEAST_MEAN = 0.05


def saturation_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how much more of the output than of the input is at or beyond black and white.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Their inputs, same shape.

    Returns:
        A scalar from 0: the mean excess, in units of brightness.
    """
    return (_clipped(output) - _clipped(real)).clamp(min=0).mean()


def contrast_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how much the local contrast of the output lacks to a contrast of 0.3.

    Contrast is the standard deviation over the mean in patches of 8 pixels; haze lowers it
    (Koschmieder 1924). A patch without any structure in the input, such as sky, does not count.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Their inputs, same shape.

    Returns:
        A scalar from 0: the mean lack, in units of contrast.

    >>> import torch
    >>> flat = torch.full((1, 3, 8, 8), 0.5)
    >>> contrast_loss(flat, flat)
    tensor(0.)
    """
    found, before = _local_contrast(output), _local_contrast(real)
    structured = (before / (before + _MARGIN)).detach()
    textured = structured * (before > _MARGIN / 2)
    return (textured * functional.relu(_CONTRAST - found)).mean()


def attenuation_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how far brightness exceeds saturation in the output, which haze brings about.

    Color attenuation prior (Zhu et al. 2015, IEEE TIP 24(11), eq. 8): the denser the haze, the
    larger the difference of value and saturation.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Not used; every prior has the same signature.

    Returns:
        A scalar in ``[0, 1]``.

    >>> import torch
    >>> attenuation_loss(torch.full((1, 3, 8, 8), 0.25), torch.zeros(1, 3, 8, 8))
    tensor(0.2500)
    """
    del real
    seen = output.clamp(0, 1)
    value, darkest = seen.amax(dim=1), seen.amin(dim=1)
    saturation = (value - darkest) / value.clamp(min=_LEAST_MEAN)
    return functional.relu(value - saturation).mean()


def color_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how far the mean color has moved from that of the input, brightness aside.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Their inputs, same shape.

    Returns:
        A scalar from 0: mean absolute difference of the channel means over their mean.
    """
    return (_balance(output) - _balance(real)).abs().mean()


def total_variation_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how much more than their inputs the outputs change from pixel to pixel, where flat.

    The total variation (Rudin et al. 1992, doi:10.1016/0167-2789(92)90242-F), weighted down where
    the input itself has edges, so that noise blown up in flat regions counts and detail does not.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Their inputs, same shape.

    Returns:
        A scalar from 0: mean absolute difference of neighbors.
    """
    total = output.new_zeros(())
    for dim in (2, 3):
        flatness = _MARGIN / (_MARGIN + real.diff(dim=dim).abs().mean(dim=1, keepdim=True))
        total = total + (flatness * output.diff(dim=dim).abs()).mean()
    return total


def _local_contrast(image: Tensor) -> Tensor:
    gray = image.mean(dim=1, keepdim=True)
    patch = min(_PATCH, *gray.shape[-2:])
    mean = functional.avg_pool2d(gray, patch)
    variance = functional.avg_pool2d(gray.square(), patch) - mean.square()
    return (variance.clamp(min=0) + _EPSILON**2).sqrt() / mean.clamp(min=_LEAST_MEAN)


def _clipped(image: Tensor) -> Tensor:
    return functional.relu(_MARGIN - image) + functional.relu(image - (1 - _MARGIN))


def _balance(image: Tensor) -> Tensor:
    means = image.mean(dim=(2, 3))
    return means / means.mean(dim=1, keepdim=True).clamp(min=_LEAST_MEAN)

"""Natural-scene statistics that both no-reference measures are made of."""

import torch
from torch import Tensor
from torch.nn import functional

_LUMINANCE = (0.299, 0.587, 0.114)
_RADIUS = 3
_SIGMA = 7 / 6


def luminance(image: Tensor) -> Tensor:
    """Return the brightness (ITU-R BT.601 luma) of an image.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``.

    Returns:
        Shape ``(height, width)``, same dtype.
    """
    weights = torch.tensor(_LUMINANCE, dtype=image.dtype, device=image.device)
    return torch.einsum("c,chw->hw", weights, image)


def local_moments(gray: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation in a Gaussian window of 7 pixels.

    Args:
        gray: Shape ``(height, width)``, sides from 4.

    Returns:
        Two maps of the same shape.
    """
    mean = _blurred(gray)
    variance = _blurred(gray.square()) - mean.square()
    return mean, variance.clamp(min=0).sqrt()


def normalized_contrast(gray: Tensor) -> Tensor:
    """Return the mean-subtracted contrast-normalized (MSCN) coefficients (Ruderman 1994).

    Args:
        gray: Shape ``(height, width)``, values from 0 to 255; 1 is added to the deviation.
    """
    mean, deviation = local_moments(gray)
    return (gray - mean) / (deviation + 1)


def patches(values: Tensor, side: int) -> Tensor:
    """Return the whole square patches that fit into a map, side by side.

    Args:
        values: Shape ``(height, width)``.
        side: Side of a patch.

    Returns:
        Shape ``(n_patches, side, side)``.

    >>> patches(torch.arange(12.0).reshape(3, 4), 2).shape
    torch.Size([2, 2, 2])
    """
    rows, columns = values.shape[0] // side, values.shape[1] // side
    whole = values[: rows * side, : columns * side]
    blocks = whole.reshape(rows, side, columns, side).permute(0, 2, 1, 3)
    return blocks.reshape(-1, side, side)


def _blurred(gray: Tensor) -> Tensor:
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=gray.dtype, device=gray.device)
    kernel = torch.exp(-0.5 * (offsets / _SIGMA).square())
    kernel = kernel / kernel.sum()
    padded = functional.pad(gray[None, None], (_RADIUS,) * 4, mode="reflect")
    rows = functional.conv2d(padded, kernel.reshape(1, 1, -1, 1))
    return functional.conv2d(rows, kernel.reshape(1, 1, 1, -1))[0, 0]

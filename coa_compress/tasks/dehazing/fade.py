"""FADE: how much fog an image shows, told from the image alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from coa_compress.tasks.dehazing.image_statistics import (
    Gaussian,
    correlated,
    enlarged,
    gray_levels,
    levels,
    local_moments,
    normalized_contrast,
    patches,
)

PATCH = 8
"""Side of a patch in pixels."""

FEATURES = (
    "contrast variance",
    "variance of positive neighbor products",
    "variance of negative neighbor products",
    "sharpness",
    "coefficient of variation",
    "contrast energy, gray",
    "contrast energy, yellow-blue",
    "contrast energy, red-green",
    "entropy",
    "dark channel",
    "saturation",
    "colorfulness",
)
"""What the features of a patch are, in order."""

_SMALLEST = 16
_SIGMA = 3.25
_SPAN = 9.75
_BORDER = 10
_SEMISATURATION = 0.1
_LEAST_RESPONSE = 1e-7
# noise thresholds of gray, yellow-blue and red-green in levels
_NOISE = tuple(
    255 * part for part in (9.225496406318721e-4, 8.969246659629488e-4, 2.069284034165411e-4)
)


@dataclass(frozen=True, slots=True, eq=False)
class FadeParameters:
    """The features of patches without and with fog.

    Args:
        clear: Of natural images without fog, 12 features.
        foggy: Of natural images in fog, 12 features.
    """

    clear: Gaussian
    foggy: Gaussian


def fade(image: Tensor, parameters: FadeParameters) -> float:
    """Return the perceptual fog density of an image; lower is clearer.

    ``D_f / (D_ff + 1)``: the mean distance of the patches from images without fog over the mean
    distance from images in fog (Choi, You & Bovik 2015, IEEE TIP 24(11), eq. 21 to 23), following
    the authors' MATLAB code where it differs from the paper: in each patch the variance over its
    12 features is added to all elements of the covariance, and a patch with an undefined feature
    does not count.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``, any size; measured in 8 bits at
            its own size, and enlarged only where a side is below 16 pixels.
        parameters: What patches without and with fog look like.

    Returns:
        From 0, with the authors' parameters about 0.5 for a clear photograph and 1.5 in fog; nan
        if no patch is defined, as in an image of one color.
    """
    return fade_of(fade_features(image), parameters)


def fade_of(features: Tensor, parameters: FadeParameters) -> float:
    """Return the perceptual fog density that follows from the features of the patches.

    Args:
        features: Shape ``(n_patches, 12)``, as ``fade_features`` returns them.
        parameters: What patches without and with fog look like.
    """
    spread = features.var(dim=1)
    clear = _mean_distance(features, spread, parameters.clear.to(features.device))
    foggy = _mean_distance(features, spread, parameters.foggy.to(features.device))
    return clear / (foggy + 1)


def fade_features(image: Tensor) -> Tensor:
    """Return the logarithms of 1 plus the features of each patch of 8 by 8 pixels.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``.

    Returns:
        Shape ``(n_patches, 12)``, float64, in the order of ``FEATURES``; nan where undefined.
    """
    color = levels(enlarged(image.detach(), _SMALLEST))
    height, width = (length // PATCH * PATCH for length in color.shape[-2:])
    color = color[:, :height, :width]
    gray = gray_levels(color)
    mean, deviation = local_moments(gray)
    contrast = normalized_contrast(gray, mean, deviation)
    product = patches(contrast * contrast.roll(1, dims=0), PATCH).flatten(1)
    brightest, darkest = color.amax(dim=0), color.amin(dim=0)
    saturation = torch.where(brightest > 0, (brightest - darkest) / brightest.clamp(min=1), 0.0)
    columns = [
        patches(contrast, PATCH).flatten(1).var(dim=1),
        _variance_of(product, product >= 0),
        _variance_of(product, product <= 0),
        _mean(deviation),
        _mean(deviation / mean),
        *(_mean(energy) for energy in _contrast_energies(color)),
        _entropy(gray),
        _mean(darkest / 255),
        _mean(saturation),
        _colorfulness(color),
    ]
    return torch.stack(columns, dim=1).log1p()


def _mean_distance(features: Tensor, spread: Tensor, reference: Gaussian) -> float:
    """Return the mean Mahalanobis distance of the patches that are defined.

    The covariance of a patch is ``(reference + spread * ones) / 2``: of rank one apart from the
    reference, so that one inverse serves all patches (Sherman & Morrison 1950).
    """
    inverse = torch.linalg.inv(reference.covariance / 2)
    difference = features - reference.mean
    projected = difference @ inverse
    squared = (projected * difference).sum(dim=1)
    half = spread / 2
    correction = half * projected.sum(dim=1).square() / (1 + half * inverse.sum())
    return float((squared - correction).clamp(min=0).sqrt().nanmean())


def _contrast_energies(color: Tensor) -> Tensor:
    """Return the contrast energy (Groen et al. 2013) of gray, yellow-blue and red-green."""
    red, green, blue = color
    gray = 0.299 * red + 0.587 * green + 0.114 * blue
    channels = torch.stack([gray, 0.5 * red + 0.5 * green - blue, red - green])
    # the authors' border: the outer rows and columns once more, not mirrored
    rows = torch.cat([channels[:, :_BORDER], channels, channels[:, -_BORDER:]], dim=1)
    around = torch.cat([rows[:, :, :_BORDER], rows, rows[:, :, -_BORDER:]], dim=2)
    kernel = _second_derivative(color)
    # the kernel has an even number of taps: what it is centered on, as conv2 of MATLAB has it
    inside = slice(_BORDER, -_BORDER)
    across = correlated(around[:, inside], kernel, dim=2)[:, :, 1:]
    down = correlated(around[:, :, inside], kernel, dim=1)[:, 1:]
    energy = (across.square() + down.square()).sqrt()
    largest = energy.amax(dim=(1, 2), keepdim=True)
    response = energy * largest / (energy + _SEMISATURATION * largest)
    response = response - response.new_tensor(_NOISE).reshape(-1, 1, 1)
    # a channel without any contrast is 0 / 0 here, and no response
    return torch.where(response > _LEAST_RESPONSE, response, 0.0)


def _second_derivative(like: Tensor) -> Tensor:
    """Return the taps of a second derivative of a Gaussian, reversed for a correlation."""
    count = math.floor(2 * _SPAN) + 1
    at = torch.arange(count, dtype=like.dtype, device=like.device) - _SPAN
    bell = torch.exp(-at.square() / (2 * _SIGMA**2))
    taps = (at.square() / _SIGMA**4 - 1 / _SIGMA**2) * bell / bell.sum()
    taps = taps - taps.mean()
    taps = taps / (0.5 * at.square() * taps).sum()
    return taps.flip(0)


def _entropy(gray: Tensor) -> Tensor:
    """Return the entropy in bits of the levels in each patch."""
    numbers = patches(gray, PATCH).flatten(1).long()
    counts = gray.new_zeros(len(numbers), 256)
    counts.scatter_add_(1, numbers, torch.ones_like(numbers, dtype=gray.dtype))
    return math.log2(PATCH**2) - counts.gather(1, numbers).log2().mean(dim=1)


def _colorfulness(color: Tensor) -> Tensor:
    red, green, blue = color
    opponents = [patches(o, PATCH).flatten(1) for o in (red - green, 0.5 * (red + green) - blue)]
    spread = sum(opponent.var(dim=1) for opponent in opponents)
    offset = sum(opponent.mean(dim=1).square() for opponent in opponents)
    return torch.as_tensor(spread).sqrt() + 0.3 * torch.as_tensor(offset).sqrt()


def _variance_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the variance of the chosen values of each row: 0 for one, nan for none."""
    count = chosen.sum(dim=1)
    mean = torch.where(chosen, values, 0.0).sum(dim=1) / count
    squares = torch.where(chosen, (values - mean[:, None]).square(), 0.0).sum(dim=1)
    return torch.where(count > 0, squares / (count - 1).clamp(min=1), math.nan)


def _mean(values: Tensor) -> Tensor:
    return patches(values, PATCH).mean(dim=(1, 2))

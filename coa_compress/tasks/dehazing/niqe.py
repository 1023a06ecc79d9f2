"""NIQE: how far an image is from looking natural, told from the image alone."""

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
)
from coa_compress.tasks.dehazing.image_statistics import patches as cut_patches

PATCH = 96
"""Side of a patch in pixels at full resolution."""

N_FEATURES = 36
"""Features of a patch: 18 at each of two scales."""

_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_EPSILON = 1e-9


def niqe(image: Tensor, reference: Gaussian) -> float:
    """Return how far the statistics of an image are from those of natural ones.

    The distance of two Gaussians over 36 features of patches of 96 by 96 pixels (Mittal,
    Soundararajan & Bovik 2013, IEEE SPL 20(3), eq. 10), following the authors' MATLAB code.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``, any size; measured in 8 bits at
            its own size, and enlarged only where a side is below 96 pixels.
        reference: What natural images look like, 36 features. Values compare only with others of
            the same reference.

    Returns:
        From 0; lower is more natural.
    """
    return niqe_of(patch_features(image)[0], reference)


def niqe_of(features: Tensor, reference: Gaussian) -> float:
    """Return the distance that follows from the features of the patches.

    Args:
        features: Shape ``(n_patches, 36)``, as ``patch_features`` returns them.
        reference: What natural images look like.
    """
    reference = reference.to(features.device)
    difference = features.mean(dim=0) - reference.mean
    covariance = reference.covariance
    if len(features) > 1:
        covariance = (covariance + torch.cov(features.T)) / 2
    inverse = torch.linalg.pinv(covariance, hermitian=True)
    return float((difference @ inverse @ difference).clamp(min=0).sqrt())


def patch_features(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the statistics and the sharpness of each patch.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``.

    Returns:
        Shapes ``(n_patches, 36)`` and ``(n_patches,)``, float64.
    """
    gray = gray_levels(levels(enlarged(image.detach(), PATCH)))
    height, width = (length // PATCH * PATCH for length in gray.shape)
    gray = gray[:height, :width]
    parts = []
    sharpness = gray.new_zeros(0)
    for side in (PATCH, PATCH // 2):
        mean, deviation = local_moments(gray)
        contrast = normalized_contrast(gray, mean, deviation)
        parts.append(_shape_features(cut_patches(contrast, side)))
        if side == PATCH:
            sharpness = cut_patches(deviation, side).mean(dim=(1, 2))
            gray = _halved(_halved(gray, dim=0), dim=1)
    return torch.cat(parts, dim=1), sharpness


def _shape_features(contrast: Tensor) -> Tensor:
    """Return the 18 parameters of the distributions in each patch, shape ``(n_patches, 18)``."""
    left, right, shape = _asymmetric_fit(contrast)
    columns = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        left, right, shape = _asymmetric_fit(contrast * contrast.roll(shift, dims=(1, 2)))
        pull = torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        columns += [shape, (right - left) * pull, left, right]
    return torch.stack(columns, dim=1)


def _asymmetric_fit(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalized Gaussian by moments (Lasmar et al. 2009).

    Args:
        values: Shape ``(n_patches, height, width)``.

    Returns:
        Left scale, right scale and shape parameter, each ``(n_patches,)``.
    """
    flat = values.flatten(1)
    squares = flat.square()
    below, above = flat < 0, flat > 0
    left = (torch.where(below, squares, 0.0).sum(1) / below.sum(1).clamp(min=1)).sqrt()
    right = (torch.where(above, squares, 0.0).sum(1) / above.sum(1).clamp(min=1)).sqrt()
    skew = (left + _EPSILON) / (right + _EPSILON)
    moment = flat.abs().mean(1).square() / (squares.mean(1) + _EPSILON**2)
    moment = moment * (skew**3 + 1) * (skew + 1) / (skew.square() + 1).square()
    shapes, moments = (values.to(moment.device) for values in _shape_table())
    after = torch.searchsorted(moments, moment.contiguous()).clamp(1, len(shapes) - 1)
    nearer = moment - moments[after - 1] < moments[after] - moment
    shape = shapes[after - nearer.long()]
    scale = torch.exp((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2)
    return left * scale, right * scale, shape


def _shape_table() -> tuple[Tensor, Tensor]:
    """Return shape parameters and the moment ``E|x|**2 / E[x**2]`` of each, both rising."""
    shapes = torch.arange(200, 10_001, dtype=torch.float64) / 1000
    logs = 2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)
    return shapes, logs.exp()


def _halved(gray: Tensor, *, dim: int) -> Tensor:
    """Return half of the size along one dimension: bicubic with antialiasing, edges mirrored."""
    at = torch.arange(-3.5, 4.0, dtype=gray.dtype).abs() / 2
    near = 1.5 * at**3 - 2.5 * at**2 + 1
    far = -0.5 * at**3 + 2.5 * at**2 - 4 * at + 2
    kernel = torch.where(at <= 1, near, far)
    first, last = gray.narrow(dim, 0, 3), gray.narrow(dim, gray.shape[dim] - 3, 3)
    padded = torch.cat([first.flip(dim), gray, last.flip(dim)], dim=dim)
    whole = correlated(padded, kernel / kernel.sum(), dim=dim)
    half = torch.arange(0, whole.shape[dim], 2, device=gray.device)
    return whole.index_select(dim, half)

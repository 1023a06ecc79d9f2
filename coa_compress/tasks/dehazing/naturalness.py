"""A no-reference estimate of how natural an image looks."""

from functools import cache
from importlib.resources import as_file, files

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.dehazing.image_statistics import (
    local_moments,
    luminance,
    normalized_contrast,
)
from coa_compress.tasks.dehazing.image_statistics import patches as cut_patches

PATCH = 96
"""Side of a patch in pixels at full resolution."""

_PACKAGE = "coa_compress.tasks.dehazing"
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_EPSILON = 1e-9


def naturalness(image: Tensor) -> float:
    """Return ``100 / (1 + natural_distance(image))``: higher is more natural.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``, any size.

    Returns:
        In (0, 100]; clear photographs have about 20.

    >>> noise = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    >>> 0 < naturalness(noise) < 15
    True
    """
    return 100 / (1 + natural_distance(image))


def natural_distance(image: Tensor) -> float:
    """Return how far the statistics of an image are from those of clear photographs.

    The distance of two Gaussians over 36 features of patches, after NIQE (Mittal et al. 2013,
    IEEE SPL 20(3), eq. 10); the Gaussian of clear photographs was fitted by us
    (``benchmarks/fit_measures.py``), so values do not compare with published NIQE.

    Args:
        image: Shape ``(3, height, width)``, values in ``[0, 1]``, any size.

    Returns:
        From 0; lower is more natural.
    """
    features, _ = patch_features(image)
    mean, covariance = _reference()
    difference = features.mean(dim=0) - mean
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
    gray = 255 * luminance(image.detach().double().cpu().clamp(0, 1))
    shorter = min(gray.shape)
    if shorter < PATCH:
        size = tuple(round(length * PATCH / shorter) for length in gray.shape)
        gray = _scaled(gray, (max(PATCH, size[0]), max(PATCH, size[1])))
    rows, columns = gray.shape[0] // PATCH, gray.shape[1] // PATCH
    gray = gray[: rows * PATCH, : columns * PATCH]
    sharpness = cut_patches(local_moments(gray)[1], PATCH).mean(dim=(1, 2))
    half = _scaled(gray, (gray.shape[0] // 2, gray.shape[1] // 2))
    parts = [
        _shape_features(cut_patches(normalized_contrast(scaled), side))
        for scaled, side in ((gray, PATCH), (half, PATCH // 2))
    ]
    return torch.cat(parts, dim=1), sharpness


def _shape_features(mscn: Tensor) -> Tensor:
    """Return the 18 parameters of the distributions in each patch, shape ``(n_patches, 18)``."""
    left, right, shape = _asymmetric_fit(mscn)
    columns = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        product = mscn * torch.roll(mscn, shift, dims=(1, 2))
        left, right, shape = _asymmetric_fit(product)
        beta = torch.exp(torch.lgamma(1 / shape) - torch.lgamma(3 / shape)).sqrt()
        pull = torch.exp(torch.lgamma(2 / shape) - torch.lgamma(1 / shape))
        columns += [shape, (right - left) * beta * pull, left, right]
    return torch.stack(columns, dim=1)


def _asymmetric_fit(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit an asymmetric generalized Gaussian by moments (Lasmar et al. 2009).

    Args:
        values: Shape ``(n_patches, height, width)``.

    Returns:
        Left deviation, right deviation and shape parameter, each ``(n_patches,)``.
    """
    flat = values.flatten(1)
    below, above = flat.clamp(max=0), flat.clamp(min=0)
    left = (below.square().sum(1) / (flat < 0).sum(1).clamp(min=1)).sqrt()
    right = (above.square().sum(1) / (flat > 0).sum(1).clamp(min=1)).sqrt()
    skew = (left + _EPSILON) / (right + _EPSILON)
    moment = flat.abs().mean(1).square() / (flat.square().mean(1) + _EPSILON)
    moment = moment * (skew**3 + 1) * (skew + 1) / (skew.square() + 1).square()
    shapes, moments = _shape_table()
    nearest = torch.searchsorted(moments, moment.contiguous()).clamp(max=len(shapes) - 1)
    return left, right, shapes[nearest]


@cache
def _shape_table() -> tuple[Tensor, Tensor]:
    """Return shape parameters and the moment ``E|x|**2 / E[x**2]`` of each, both rising."""
    shapes = torch.arange(0.2, 10.0, 0.001, dtype=torch.float64)
    logs = 2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)
    return shapes, logs.exp()


def _scaled(gray: Tensor, size: tuple[int, int]) -> Tensor:
    scaled = functional.interpolate(
        gray[None, None], size, mode="bicubic", antialias=True, align_corners=False
    )
    return scaled[0, 0]


@cache
def _reference() -> tuple[Tensor, Tensor]:
    with as_file(files(_PACKAGE) / "weights" / "naturalness.safetensors") as path:
        values = load_file(path)
    return values["mean"], values["covariance"]

"""Natural-scene statistics that the no-reference measures are made of."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# rgb2gray of MATLAB, with which the published parameters of these measures were estimated
_GRAY = (0.298936021293775, 0.587043074451121, 0.114020904255103)
_RADIUS = 3
_SIGMA = 7 / 6
_NO_CONTRAST = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Gaussian:
    """A multivariate Gaussian of image features.

    Args:
        mean: Shape ``(n_features,)``, float64.
        covariance: Shape ``(n_features, n_features)``, float64.
    """

    mean: Tensor
    covariance: Tensor

    def to(self, device: torch.device) -> "Gaussian":
        """Return the same Gaussian on a device."""
        return Gaussian(self.mean.to(device), self.covariance.to(device))


def fit_gaussian(features: Tensor) -> Gaussian:
    """Return the Gaussian with the mean and covariance of some features.

    Args:
        features: Shape ``(n_samples, n_features)``, at least two samples.

    >>> fit_gaussian(torch.tensor([[0.0, 1.0], [2.0, 3.0]])).mean.tolist()
    [1.0, 2.0]
    """
    features = features.double()
    return Gaussian(features.mean(dim=0), torch.cov(features.T))


def levels(image: Tensor) -> Tensor:
    """Return an image in 256 levels, float64 from 0 to 255, as 8 bits hold it.

    Args:
        image: Shape ``(3, height, width)``, clamped to ``[0, 1]``.
    """
    return (image.detach().double().clamp(0, 1) * 255).round()


def gray_levels(color: Tensor) -> Tensor:
    """Return the brightness of an image in whole levels.

    Args:
        color: Shape ``(3, height, width)``, from 0 to 255.

    Returns:
        Shape ``(height, width)``, same dtype.
    """
    weights = torch.tensor(_GRAY, dtype=color.dtype, device=color.device)
    return (torch.einsum("c,chw->hw", weights, color) + 0.5).floor()


def local_moments(gray: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation in a Gaussian window of 7 pixels.

    Args:
        gray: Shape ``(height, width)``, values from 0 to 255.

    Returns:
        Two maps of the same shape; the border is repeated beyond the edge.
    """
    mean = _blurred(gray)
    deviation = (_blurred(gray.square()) - mean.square()).abs().sqrt()
    return mean, deviation


def normalized_contrast(gray: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the mean-subtracted contrast-normalized (MSCN) coefficients (Ruderman 1994).

    Args:
        gray: Shape ``(height, width)``, values from 0 to 255; 1 is added to the deviation.
        mean: Local mean of ``gray``.
        deviation: Local standard deviation of ``gray``.
    """
    contrast = (gray - mean) / (deviation + 1)
    # where all is one level only rounding is left; its sign counts, so that it must be the same
    # on every machine: that of MATLAB for most levels, where the mean comes out a trifle too large
    return torch.where(contrast.abs() < _NO_CONTRAST, -_NO_CONTRAST, contrast)


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


def enlarged(values: Tensor, side: int) -> Tensor:
    """Return maps that are at least so large on their shorter side; large ones as they are.

    Args:
        values: Shape ``(n_maps, height, width)``.
        side: Least height and width.
    """
    height, width = values.shape[-2:]
    shorter = min(height, width)
    if shorter >= side:
        return values
    size = [max(side, round(length * side / shorter)) for length in (height, width)]
    return functional.interpolate(values[None], size, mode="bilinear", align_corners=False)[0]


def correlated(maps: Tensor, kernel: Tensor, *, dim: int) -> Tensor:
    """Return maps filtered along one dimension, where the kernel lies inside.

    Args:
        maps: Any shape.
        kernel: Shape ``(n_taps,)``.
        dim: The dimension, which gets shorter by ``n_taps - 1``.

    >>> correlated(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-1.0, 1.0]), dim=0)
    tensor([1., 2.])
    """
    # in float64 sums of shifted maps take a sixth of the time of a convolution on a CPU
    count = maps.shape[dim] - len(kernel) + 1
    first, *others = kernel.tolist()
    total: Tensor = maps.narrow(dim, 0, count) * first
    for start, weight in enumerate(others, start=1):
        total.add_(maps.narrow(dim, start, count), alpha=weight)
    return total


def _blurred(gray: Tensor) -> Tensor:
    offsets = torch.arange(-_RADIUS, _RADIUS + 1, dtype=gray.dtype)
    kernel = torch.exp(-0.5 * (offsets / _SIGMA).square())
    kernel = kernel / kernel.sum()
    padded = functional.pad(gray[None, None], (_RADIUS,) * 4, mode="replicate")[0, 0]
    return correlated(correlated(padded, kernel, dim=0), kernel, dim=1)

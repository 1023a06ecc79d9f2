"""Physical priors on dehazed real images, where no truth is known."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

_DARK_PATCH = 7
_REHAZE_PATCH = 8
_MARGIN = 0.02
_EPSILON = 1e-4


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
    darkest = output.clamp(0, 1).amin(dim=1, keepdim=True)
    pooled = functional.max_pool2d(-darkest, _DARK_PATCH, stride=1, padding=_DARK_PATCH // 2)
    return -pooled.mean()


def saturation_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how much more of the output than of the input is at or beyond black and white.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Their inputs, same shape.

    Returns:
        A scalar from 0: the mean excess, in units of brightness.
    """
    return (_clipped(output) - _clipped(real)).clamp(min=0).mean()


def rehaze_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how badly the input is explained as the output seen through haze.

    In patches of 8 pixels the transmission t and the scattered light b of ``I = J t + b`` are
    solved by least squares, limited to ``t`` in ``[0, 1]`` and ``b`` in ``[0, 1 - t]``; the output
    is hazed again with both and compared. What haze cannot explain (invented texture, lost
    detail, colored patches) remains.

    Args:
        output: Dehazed images J, shape ``(batch, 3, height, width)``.
        real: Their inputs I, same shape.

    Returns:
        A scalar from 0: mean absolute error.
    """
    size = output.shape[-2:]
    patch = min(_REHAZE_PATCH, *size)

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, patch, ceil_mode=True, count_include_pad=False)

    clear_mean, hazy_mean = mean(output), mean(real)
    covariance = (mean(output * real) - clear_mean * hazy_mean).sum(dim=1, keepdim=True)
    variance = (mean(output.square()) - clear_mean.square()).sum(dim=1, keepdim=True)
    passed = (covariance / (variance + _EPSILON)).clamp(0, 1)
    light = (hazy_mean - passed * clear_mean).clamp(min=0).minimum(1 - passed)

    def spread(values: Tensor) -> Tensor:
        rows = values.repeat_interleave(patch, dim=2)[:, :, : size[0]]
        return rows.repeat_interleave(patch, dim=3)[:, :, :, : size[1]]

    return (output * spread(passed) + spread(light) - real).abs().mean()


def color_loss(output: Tensor, real: Tensor) -> Tensor:
    """Return how far the mean color has moved from that of the input, brightness aside.

    Args:
        output: Dehazed images, shape ``(batch, 3, height, width)``.
        real: Their inputs, same shape.

    Returns:
        A scalar from 0: mean absolute difference of the channel means over their mean.
    """
    return (_balance(output) - _balance(real)).abs().mean()


PRIORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dark_channel": dark_channel_loss,
    "saturation": saturation_loss,
    "rehaze": rehaze_loss,
    "color": color_loss,
}
"""Every prior by name: a scalar from 0 of outputs and inputs; lower is better."""


def _clipped(image: Tensor) -> Tensor:
    return functional.relu(_MARGIN - image) + functional.relu(image - (1 - _MARGIN))


def _balance(image: Tensor) -> Tensor:
    means = image.mean(dim=(2, 3))
    return means / means.mean(dim=1, keepdim=True).clamp(min=0.05)

"""The haze between an output and its input, and how to put it back."""

import torch
from torch import Tensor
from torch.nn import functional

_PATCH = 8
_EPSILON = 1e-4
_SMOOTHING = 33
_EXPONENT = (0.4, 1.8)
_UNIFORM = 0.3
_AIRLIGHT = (0.4, 1.0)


def scattering(clear: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return transmission t and scattered light b of ``I = J t + b``, by patches of 8 pixels.

    Solved by least squares, limited to ``t`` in ``[0, 1]`` and ``b`` in ``[0, 1 - t]``.

    Args:
        clear: J, shape ``(batch, 3, height, width)``.
        real: I, same shape.

    Returns:
        Shapes ``(batch, 1, height, width)`` and ``(batch, 3, height, width)``.
    """
    size = clear.shape[-2:]
    patch = min(_PATCH, *size)

    def mean(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values, patch, ceil_mode=True, count_include_pad=False)

    clear_mean, hazy_mean = mean(clear), mean(real)
    covariance = (mean(clear * real) - clear_mean * hazy_mean).sum(dim=1, keepdim=True)
    variance = (mean(clear.square()) - clear_mean.square()).sum(dim=1, keepdim=True)
    passed = (covariance / (variance + _EPSILON)).clamp(0, 1)
    light = (hazy_mean - passed * clear_mean).clamp(min=0).minimum(1 - passed)

    def spread(values: Tensor) -> Tensor:
        rows = values.repeat_interleave(patch, dim=2)[:, :, : size[0]]
        return rows.repeat_interleave(patch, dim=3)[:, :, :, : size[1]]

    return spread(passed), spread(light)


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
    passed, light = scattering(output, real)
    return (output * passed + light - real).abs().mean()


def haze_again(clear: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
    """Return images under random haze of the shape and color that was seen in their inputs.

    The transmission between the two, made smooth, is raised to a random power, as if the air were
    thinner or thicker, times that of a random even haze; the airlight is what was scattered.

    Args:
        clear: Images without haze, shape ``(batch, 3, height, width)``.
        real: The inputs they were made of, same shape.
        generator: The only source of randomness.

    Returns:
        Same shape, values in ``[0, 1]``.
    """
    passed, light = scattering(clear, real)
    passed = smooth(passed, _SMOOTHING).clamp(min=_EPSILON)
    lost = (1 - passed).mean(dim=(2, 3), keepdim=True)
    airlight = (light.mean(dim=(2, 3), keepdim=True) + _EPSILON) / (lost + _EPSILON)
    dice = torch.rand(2, clear.shape[0], 1, 1, 1, generator=generator).to(clear)
    low, high = _EXPONENT
    thicker = passed ** (low + (high - low) * dice[0]) * torch.exp(-_UNIFORM * dice[1])
    seen = clear.clamp(0, 1)
    return seen * thicker + airlight.clamp(*_AIRLIGHT) * (1 - thicker)


def smooth(image: Tensor, side: int) -> Tensor:
    """Return the mean in the square around each pixel, borders repeated; same shape.

    Args:
        image: Shape ``(batch, channels, height, width)``.
        side: Side of the square, an odd number of pixels.

    >>> smooth(torch.ones(1, 1, 4, 4), 3).unique()
    tensor([1.])
    """
    edge = side // 2
    rows = functional.pad(image, (0, 0, edge, edge), mode="replicate")
    rows = functional.avg_pool2d(rows, (side, 1), stride=1)
    columns = functional.pad(rows, (edge, edge, 0, 0), mode="replicate")
    return functional.avg_pool2d(columns, (1, side), stride=1)

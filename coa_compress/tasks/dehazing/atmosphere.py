"""What makes haze uneven: density that drifts, airlight that changes, depth that is not known."""

import torch
from torch import Tensor

from coa_compress.tasks.dehazing.noise import fractal_noise
from coa_compress.tasks.dice import Dice

_DRIFT = (0.15, 0.6)
_DEPTH_NOISE = (0.05, 0.2)
_BRIGHTNESS_CHANGE = 0.15
_COLOR_CHANGE = 0.06


def drifting_density(size: tuple[int, int], dice: Dice) -> Tensor:
    """Return how dense uneven haze is at each pixel, over its mean: banks and gaps.

    The scattering coefficient of a homogeneous atmosphere is one number; real haze drifts, as in
    NH-HAZE (Ancuti et al. 2020, arXiv:2005.03560). The logarithm of the factor is smooth noise.

    Args:
        size: Height and width in pixels.
        dice: The only source of randomness.

    Returns:
        Shape ``(1, height, width)``, above 0, mean 1.

    >>> drifting_density((4, 6), Dice(torch.Generator().manual_seed(0))).shape
    torch.Size([1, 4, 6])
    """
    strength = dice.uniform(*_DRIFT)
    density = fractal_noise(size, dice.generator, cells=2, octaves=3).mul(strength).exp()
    return (density / density.mean())[None]


def varying_airlight(airlight: Tensor, size: tuple[int, int], dice: Dice) -> Tensor:
    """Return an airlight that goes over from one color to another across the image.

    One global airlight holds for a uniform sky; the sun, a lit town and thick banks change its
    brightness and, as in the degradations of RIDCP (Wu et al. 2023, arXiv:2304.03994), its color.

    Args:
        airlight: The color in the middle, shape ``(3,)``, values in ``[0, 1]``.
        size: Height and width in pixels.
        dice: The only source of randomness; draws the direction, too.

    Returns:
        Shape ``(3, height, width)``, values in ``[0, 1]``.

    >>> varying_airlight(torch.full((3,), 0.8), (4, 6), Dice(torch.Generator())).shape
    torch.Size([3, 4, 6])
    """
    height, width = size
    toward = dice.uniform(0.0, 2 * torch.pi)
    down, right = torch.tensor(toward).sin(), torch.tensor(toward).cos()
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)[None]
    position = (down * rows + right * columns) / (down.abs() + right.abs())
    tint = 2 * torch.rand(3, generator=dice.generator) - 1
    change = _BRIGHTNESS_CHANGE * dice.uniform(-1.0, 1.0) + _COLOR_CHANGE * tint
    varied: Tensor = airlight[:, None, None] * (1 + change[:, None, None] * position)
    return varied.clamp(0, 1)


def uncertain_depth(depth: Tensor, dice: Dice) -> Tensor:
    """Return depth as a camera or an estimator would have it: wrong by some parts of itself.

    Haze made from such depth does not follow the edges of the image exactly, so that a network
    cannot learn that it does.

    Args:
        depth: Shape ``(1, height, width)``, from 0.
        dice: The only source of randomness.

    Returns:
        Same shape, from 0; where the depth is 0 it stays 0.

    >>> uncertain_depth(torch.zeros(1, 4, 6), Dice(torch.Generator())).sum()
    tensor(0.)
    """
    size = (depth.shape[-2], depth.shape[-1])
    strength = dice.uniform(*_DEPTH_NOISE)
    noise = fractal_noise(size, dice.generator, cells=6, octaves=4, persistence=0.7)
    wrong: Tensor = depth * noise.mul(strength).exp()
    return wrong

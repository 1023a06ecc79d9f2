"""Haze by night: lamps of several colors, the glow around them, and a dim airlight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coa_compress.tasks.dice import Dice

_LAMPS: tuple[tuple[float, float, float], ...] = (
    (1.0, 0.72, 0.38),
    (1.0, 0.86, 0.62),
    (0.92, 0.96, 1.0),
    (1.0, 0.60, 0.36),
    (0.70, 0.95, 0.80),
    (1.0, 0.62, 0.60),
)
_SKY = (0.75, 0.85, 1.0)
_TERMS = 100
_SAMPLES = 256
_LEAST_THICKNESS = 1.15
_AIR_SHARE = 0.5
# brightness of the night sky, and the mean brightness under the lamps
_DARK = (0.03, 0.15)
_LIT = (0.15, 0.55)


@dataclass(frozen=True, slots=True, eq=False)
class Lamp:
    """A source of light in the image.

    Args:
        row: Position as a fraction of the height.
        column: Position as a fraction of the width.
        color: RGB times power, shape ``(3,)``, from 0.
        reach: Distance, in widths of the image, at which its light has fallen to a half.
        bulb: Radius of the lamp itself, in widths of the image.
    """

    row: float
    column: float
    color: Tensor
    reach: float
    bulb: float


def glow_profile(angle: Tensor, thickness: float, forward: float) -> Tensor:
    """Return the atmospheric point spread function: the glow around a lamp, 1 at the lamp.

    The multiple scattering of Narasimhan and Nayar 2003 ("Shedding light on the weather", eq. 12):
    ``sum over m of (g_m + g_m+1) L_m(cos angle)`` with
    ``g_m = exp(-(2 m + 1) / m (1 - q**(m - 1)) T - (m + 1) log T)``, ``g_0 = 0``, L the Legendre
    polynomials.

    Args:
        angle: From the direction of the lamp, in radians, in ``[0, pi]``, any shape.
        thickness: Optical depth T between lamp and camera; above 1, where the series converges.
        forward: q, how much the particles scatter forward, in ``[0, 1)``: 0.75-0.9 haze, above fog.

    Returns:
        Same shape, in ``[0, 1]``.

    >>> glow_profile(torch.tensor([0.0, 0.5, 3.0]), 1.5, 0.85).diff() < 0
    tensor([True, True])
    """
    cosines = angle.double().cos()
    before, polynomial = torch.zeros_like(cosines), torch.ones_like(cosines)
    total, peak = torch.zeros_like(cosines), 0.0
    strengths = _strengths(thickness, forward)
    for m, weight in enumerate((strengths[:-1] + strengths[1:]).tolist()):
        total = total + weight * polynomial
        peak += weight
        after = ((2 * m + 1) * cosines * polynomial - m * before) / (m + 1)
        before, polynomial = polynomial, after
    return (total / peak).clamp(0, 1).to(angle.dtype)


def random_lamps(dice: Dice) -> tuple[Lamp, ...]:
    """Return one to five lamps of street-light colors, in the image or just outside it."""
    return tuple(
        Lamp(
            row=dice.uniform(-0.2, 0.8),
            column=dice.uniform(-0.2, 1.2),
            color=dice.color(_LAMPS) * dice.uniform(0.4, 1.1),
            reach=dice.uniform(0.15, 0.6),
            bulb=dice.uniform(0.008, 0.03),
        )
        for _ in range(dice.integer(1, 5))
    )


def night_scene(clear: Tensor, passed: Tensor, dice: Dice) -> tuple[Tensor, Tensor]:
    """Return a scene by night in haze, and the same night without haze.

    After Li et al. 2015 ("Nighttime haze removal with glow and multiple light colors"):
    ``I = J t + A (1 - t) + glow`` with an airlight A that takes the color of the lamps nearby.

    Args:
        clear: The scene by day, shape ``(3, height, width)``, values in ``[0, 1]``.
        passed: Transmission, shape ``(1, height, width)``, in ``(0, 1]``.
        dice: The only source of randomness.

    Returns:
        Hazy image and truth, both of the shape of ``clear``, values in ``[0, 1]``.

    >>> hazy, truth = night_scene(
    ...     torch.ones(3, 8, 8), torch.full((1, 8, 8), 0.5), Dice(torch.Generator().manual_seed(0))
    ... )
    >>> hazy.shape == truth.shape
    True
    """
    lamps = random_lamps(dice)
    size = (clear.shape[1], clear.shape[2])
    sky = dice.uniform(*_DARK) * torch.tensor(_SKY)[:, None, None]
    away = [_distance(lamp, size) for lamp in lamps]
    lit = _sum(lamps, [_falloff(lamp, r) for lamp, r in zip(lamps, away, strict=True)])
    light = sky + lit * dice.uniform(*_LIT) / lit.mean()
    bulbs = _sum(lamps, [_disk(lamp, r, size[1]) for lamp, r in zip(lamps, away, strict=True)])
    truth = (clear * light + 2 * bulbs).clamp(0, 1)
    spread, forward = dice.uniform(0.8, 2.0), dice.uniform(0.75, 0.93)
    thickness = max(_LEAST_THICKNESS, float(-passed.mean().log()) * dice.uniform(1.0, 2.0))
    profile = glow_profile(torch.linspace(0, torch.pi, _SAMPLES), thickness, forward)
    glow = _sum(lamps, [_looked_up(profile, r * spread) for r in away]) * dice.uniform(0.2, 0.7)
    air = (sky + _AIR_SHARE * (light - sky)).clamp(0, 1)
    scattered = air + glow
    hazy = truth * passed + scattered * (1 - passed)
    return hazy.clamp(0, 1), truth


def _strengths(thickness: float, forward: float) -> Tensor:
    order = torch.arange(1, _TERMS + 1, dtype=torch.float64)
    decay = (2 * order + 1) / order * (1 - forward ** (order - 1))
    strengths = (-decay * thickness - (order + 1) * torch.tensor(thickness).log()).exp()
    return torch.cat([torch.zeros(1, dtype=torch.float64), strengths])


def _distance(lamp: Lamp, size: tuple[int, int]) -> Tensor:
    height, width = size
    rows = (torch.arange(height) + 0.5 - lamp.row * height)[:, None] / width
    columns = (torch.arange(width) + 0.5 - lamp.column * width)[None] / width
    return (rows.square() + columns.square()).sqrt()


def _falloff(lamp: Lamp, distance: Tensor) -> Tensor:
    return 1 / (1 + (distance / lamp.reach).square())


def _disk(lamp: Lamp, distance: Tensor, width: int) -> Tensor:
    return ((lamp.bulb - distance) * width + 0.5).clamp(0, 1)


def _looked_up(profile: Tensor, angle: Tensor) -> Tensor:
    position = angle.clamp(0, torch.pi) / torch.pi * (_SAMPLES - 1)
    low = position.floor().long().clamp(max=_SAMPLES - 2)
    part = position - low
    found: Tensor = profile[low] * (1 - part) + profile[low + 1] * part
    return found


def _sum(lamps: Sequence[Lamp], weights: Sequence[Tensor]) -> Tensor:
    parts = [lamp.color[:, None, None] * w for lamp, w in zip(lamps, weights, strict=True)]
    return torch.stack(parts).sum(dim=0)

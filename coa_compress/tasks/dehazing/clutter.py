"""Procedural clutter: textured shapes of every size that hide one another, with exact depth.

Dead leaves (Lee, Mumford and Huang 2001, "Occlusion models for natural images") have the edges
and the scale invariance of photographs, and networks that learn from them carry over to
photographs (Baradad et al. 2021, arXiv:2106.05963). Here each leaf has a depth as well.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.dehazing.noise import fractal_noise
from coa_compress.tasks.dice import Dice

_TEXTURE_SIDE = 256
_SMALLEST = 4.0
_LARGEST = 0.4


@dataclass(frozen=True, slots=True, eq=False)
class _Leaf:
    depth: float
    center: tuple[float, float]
    radius: float
    stretch: float
    turn: float
    corners: int


def clutter(size: tuple[int, int], dice: Dice) -> tuple[Tensor, Tensor]:
    """Return a clear image and its depth.

    Args:
        size: Height and width in pixels.
        dice: The only source of randomness.

    Returns:
        Color, shape ``(3, height, width)``, values in ``[0, 1]``, and depth, shape
        ``(height, width)``, above 0, median 1.

    >>> color, depth = clutter((24, 32), Dice(torch.Generator().manual_seed(0)))
    >>> color.shape, float(depth.median())
    (torch.Size([3, 24, 32]), 1.0)
    """
    textures = _textures(dice)
    depth = _ground(size, dice)
    color = _surface(_color(dice), textures, size, dice)
    leaves = [_leaf(depth, dice) for _ in range(dice.integer(150, 400))]
    for leaf in sorted(leaves, key=lambda leaf: -leaf.depth):
        _paint_(color, depth, leaf, textures, dice)
    light = 1 + 0.2 * fractal_noise(size, dice.generator, cells=2, octaves=3)
    return (color * light).clamp(0, 1), depth / depth.median()


def _textures(dice: Dice) -> Tensor:
    side = (_TEXTURE_SIDE, _TEXTURE_SIDE)
    kinds = [
        fractal_noise(side, dice.generator, cells=8, octaves=6, persistence=p)
        for p in (0.5, 0.75, 0.95)
    ]
    return torch.stack(kinds)


def _ground(size: tuple[int, int], dice: Dice) -> Tensor:
    """Return the depth of what is behind everything: near below, far above, or a wall."""
    height = size[0]
    ramp = torch.linspace(dice.uniform(0.0, 2.2), 0.0, height)[:, None]
    bumps = fractal_noise(size, dice.generator, cells=2, octaves=3)
    depth: Tensor = (ramp + dice.uniform(0.0, 0.25) * bumps).exp()
    return depth


def _leaf(ground: Tensor, dice: Dice) -> _Leaf:
    height, width = ground.shape
    y, x = dice.uniform(0, height), dice.uniform(0, width)
    behind = float(ground[min(int(y), height - 1), min(int(x), width - 1)])
    largest = _LARGEST * min(height, width)
    # uniform in 1 / radius: few large ones, and the small ones do not cover everything
    radius = 1 / dice.uniform(1 / largest, 1 / _SMALLEST)
    return _Leaf(
        depth=behind * dice.uniform(0.35, 1.0),
        center=(y, x),
        radius=radius * dice.uniform(1.0, 2.0),
        stretch=math.exp(dice.uniform(-0.9, 0.9)),
        turn=dice.pick([0.0, 0.0, dice.uniform(0, math.pi)]),
        corners=dice.pick([0, 3, 4, 4, 5]),
    )


def _paint_(color: Tensor, depth: Tensor, leaf: _Leaf, textures: Tensor, dice: Dice) -> None:
    height, width = depth.shape
    reach = leaf.radius * max(leaf.stretch, 1 / leaf.stretch) * 1.5
    top, bottom = max(0, int(leaf.center[0] - reach)), min(height, int(leaf.center[0] + reach) + 2)
    left, right = max(0, int(leaf.center[1] - reach)), min(width, int(leaf.center[1] + reach) + 2)
    rows = torch.arange(top, bottom)[:, None] + 0.5 - leaf.center[0]
    columns = torch.arange(left, right)[None] + 0.5 - leaf.center[1]
    cosine, sine = math.cos(leaf.turn), math.sin(leaf.turn)
    u = (columns * cosine + rows * sine) / (leaf.radius * leaf.stretch)
    v = (rows * cosine - columns * sine) * leaf.stretch / leaf.radius
    inside = _inside(u, v, leaf.corners, dice)
    size = (bottom - top, right - left)
    painted = _surface(_color(dice), textures, size, dice)
    painted = painted * (1 + dice.uniform(-0.35, 0.35) * u + dice.uniform(-0.35, 0.35) * v)
    slope = 1 + dice.uniform(-0.1, 0.1) * u + dice.uniform(-0.1, 0.1) * v
    area = (slice(top, bottom), slice(left, right))
    color[:, *area] = torch.where(inside, painted.clamp(0, 1), color[:, *area])
    depth[area] = torch.where(inside, leaf.depth * slope.clamp(0.5, 1.5), depth[area])


def _inside(u: Tensor, v: Tensor, corners: int, dice: Dice) -> Tensor:
    if corners == 0:
        return u.square() + v.square() < 1
    start = dice.uniform(0, 2 * math.pi) if corners != 4 else math.pi / 4
    sides = [start + 2 * math.pi * k / corners for k in range(corners)]
    found = torch.ones_like(u, dtype=torch.bool)
    for side in sides:
        found &= u * math.cos(side) + v * math.sin(side) < 0.8
    return found


def _color(dice: Dice) -> Tensor:
    """Return a color as photographs have them: mostly muted, dark and light alike."""
    light = float(0.02 + 0.98 * dice.uniform(0.0, 1.0) ** 1.5)
    hue = 2 * torch.rand(3, generator=dice.generator) - 1
    vivid = min(1.0, -0.12 * math.log(dice.uniform(1e-3, 1.0)))
    return (light * (1 + vivid * (hue - hue.mean()))).clamp(0.01, 1.0)


def _surface(color: Tensor, textures: Tensor, size: tuple[int, int], dice: Dice) -> Tensor:
    plain = color[:, None, None].expand(3, *size)
    strength = dice.pick([0.0, 0.05, 0.12, 0.25, 0.4])
    if strength == 0.0:
        return plain.clone()
    rows, columns = (min(side, _TEXTURE_SIDE) for side in size)
    top, left = dice.integer(0, _TEXTURE_SIDE - rows), dice.integer(0, _TEXTURE_SIDE - columns)
    grain = textures[dice.integer(0, 2), top : top + rows, left : left + columns]
    if (rows, columns) != size:
        grain = functional.interpolate(grain[None, None], size, mode="bilinear")[0, 0]
    if dice.chance(0.25):
        grain = (grain * dice.uniform(2.0, 8.0)).sin()
    other = _color(dice)[:, None, None] if dice.chance(0.3) else 1.6 * plain
    part = (strength * grain).clamp(-1, 1)
    return (plain + (other - plain) * part).clamp(0, 1)

"""Procedural clear scenes with exact depth: streets, fields and rooms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.dehazing.clutter import clutter
from coa_compress.tasks.dehazing.noise import fractal_noise
from coa_compress.tasks.dehazing.raycast import Canvas, Material
from coa_compress.tasks.dice import Dice

SIZE = (320, 448)
"""Height and width of the scenes of a pool, in pixels."""

_OUTDOOR_MEDIAN = 3.0
_OUTDOOR_POWER = 0.6
_OUTDOOR_FARTHEST = 9.0
_INDOOR_MEDIAN = 1.0
_INDOOR_FARTHEST = 6.0
_DEPTHS = {
    "outdoor": (_OUTDOOR_MEDIAN, _OUTDOOR_FARTHEST),
    "indoor": (_INDOOR_MEDIAN, _INDOOR_FARTHEST),
}

_GROUNDS = ((0.34, 0.42, 0.20), (0.45, 0.40, 0.30), (0.38, 0.38, 0.38), (0.62, 0.55, 0.42))
_ROADS = ((0.30, 0.30, 0.31), (0.48, 0.46, 0.43), (0.40, 0.34, 0.28))
_WALLS = ((0.70, 0.66, 0.58), (0.55, 0.30, 0.24), (0.80, 0.78, 0.74), (0.45, 0.47, 0.50))
_WINDOWS = ((0.16, 0.20, 0.26), (0.30, 0.36, 0.42), (0.75, 0.70, 0.55))
_LEAVES = ((0.24, 0.38, 0.14), (0.36, 0.44, 0.16), (0.16, 0.30, 0.16), (0.55, 0.38, 0.12))
_HILLS = ((0.25, 0.34, 0.22), (0.38, 0.36, 0.28), (0.30, 0.33, 0.38))
_OBJECTS: tuple[tuple[float, float, float], ...] = (
    (0.75, 0.15, 0.12),
    (0.12, 0.28, 0.62),
    (0.88, 0.74, 0.20),
    (0.85, 0.85, 0.84),
    (0.10, 0.10, 0.11),
    (0.20, 0.50, 0.34),
    (0.80, 0.45, 0.16),
)
_ZENITHS = ((0.30, 0.50, 0.82), (0.42, 0.58, 0.80), (0.62, 0.68, 0.74))
_HORIZONS = ((0.78, 0.84, 0.90), (0.86, 0.84, 0.80), (0.72, 0.80, 0.90))
_INTERIORS = ((0.86, 0.84, 0.78), (0.70, 0.78, 0.80), (0.78, 0.64, 0.54), (0.60, 0.66, 0.52))
_FLOORS = ((0.52, 0.34, 0.20), (0.68, 0.62, 0.54), (0.32, 0.24, 0.18), (0.46, 0.46, 0.48))


_DOMAINS = ("outdoor", "outdoor", "indoor")


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A clear image with depth.

    Args:
        name: Unique in its pool.
        clear: uint8, shape ``(3, height, width)``.
        depth: Shape ``(1, height, width)``, above 0, median about 3 outdoors and 1 indoors.
        domain: ``outdoor`` or ``indoor``.
    """

    name: str
    clear: Tensor
    depth: Tensor
    domain: str


@dataclass(frozen=True, slots=True)
class ScenePool(Sequence[Scene]):
    """A fixed pool of scenes that are rendered when they are asked for, and kept.

    Args:
        seed: Pools of different seeds have no scene in common.
        views: How many streets, fields and rooms, two outdoor for each indoor one.
        clutter: How many scenes of clutter follow, outdoor and indoor by turns.

    >>> len(ScenePool(seed=1, views=3, clutter=2))
    5
    """

    seed: int
    views: int
    clutter: int = 0

    def __len__(self) -> int:
        return self.views + self.clutter

    @overload
    def __getitem__(self, place: int) -> Scene: ...

    @overload
    def __getitem__(self, place: slice) -> list[Scene]: ...

    def __getitem__(self, place: int | slice) -> Scene | list[Scene]:
        places = range(len(self))[place]
        if isinstance(places, range):
            return [self[number] for number in places]
        seed = 1000 * self.seed + places
        if places < self.views:
            return _kept(render_scene, _DOMAINS[places % 3], seed)
        return _kept(render_clutter, _DOMAINS[1 + places % 2], seed)


@cache
def scene_pool(seed: int, count: int) -> tuple[Scene, ...]:
    """Return a fixed pool of scenes, two outdoor for each indoor one.

    Args:
        seed: Pools of different seeds have no scene in common.
        count: How many scenes.
    """
    return tuple(ScenePool(seed, count))


@cache
def _kept(render: Callable[..., Scene], domain: str, seed: int) -> Scene:
    return render(domain, seed=seed)


def render_scene(domain: str, *, seed: int, size: tuple[int, int] = SIZE) -> Scene:
    """Return a random scene.

    Args:
        domain: ``outdoor`` or ``indoor``.
        seed: The same seed gives the same scene.
        size: Height and width in pixels.

    >>> scene = render_scene("indoor", seed=1, size=(24, 32))
    >>> scene.clear.shape, scene.depth.shape
    (torch.Size([3, 24, 32]), torch.Size([1, 24, 32]))
    """
    dice = Dice(torch.Generator().manual_seed(seed))
    color, depth = (_outdoor if domain == "outdoor" else _indoor)(dice, size)
    levels = _developed(color, dice).mul(255).round().to(torch.uint8)
    return Scene(f"{domain}_{seed}", levels, depth[None].half(), domain)


def render_clutter(domain: str, *, seed: int, size: tuple[int, int] = SIZE) -> Scene:
    """Return random clutter with the depth that is usual in a domain.

    Args:
        domain: ``outdoor`` or ``indoor``.
        seed: The same seed gives the same scene.
        size: Height and width in pixels.

    >>> render_clutter("outdoor", seed=1, size=(24, 32)).depth.shape
    torch.Size([1, 24, 32])
    """
    dice = Dice(torch.Generator().manual_seed(seed))
    color, depth = clutter(size, dice)
    median, farthest = _DEPTHS[domain]
    levels = _developed(color, dice).mul(255).round().to(torch.uint8)
    scaled = (depth * median * dice.uniform(0.8, 1.25)).clamp(0.05, farthest)
    return Scene(f"clutter_{domain}_{seed}", levels, scaled[None].half(), domain)


def _outdoor(dice: Dice, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = size
    canvas = Canvas(
        size,
        focal=width * dice.uniform(0.7, 1.2),
        horizon=height * dice.uniform(0.35, 0.6),
        eye=dice.uniform(1.5, 6.0),
        generator=dice.generator,
    )
    _hills(canvas, dice)
    ground = _plain(dice, _GROUNDS, noise=dice.uniform(0.12, 0.3))
    canvas.paint_box((-1e4, -1.0, -1e4), (1e4, 0.0, 1e4), ground, shades=(1.0, 1.0, 1.0))
    if dice.chance(0.6):
        _road(canvas, dice)
    for _ in range(dice.integer(2, 8)):
        _building(canvas, dice)
    for _ in range(dice.integer(3, 16)):
        _tree(canvas, dice)
    for _ in range(dice.integer(1, 6)):
        _street_object(canvas, dice)
    sky = torch.isinf(canvas.depth)
    color = torch.where(sky, _sky(canvas, dice), canvas.color)
    return color, _outdoor_depth(canvas.depth, sky, dice)


def _outdoor_depth(distance: Tensor, sky: Tensor, dice: Dice) -> Tensor:
    solid = distance[~sky]
    median = solid.median() * dice.uniform(0.8, 1.25)
    depth = _OUTDOOR_MEDIAN * (distance / median) ** _OUTDOOR_POWER
    farthest = float(depth[~sky].max())
    far_sky = min(_OUTDOOR_FARTHEST, farthest * dice.uniform(1.0, 1.6))
    return torch.where(sky, far_sky, depth).clamp(0.05, _OUTDOOR_FARTHEST)


def _sky(canvas: Canvas, dice: Dice) -> Tensor:
    elevation = canvas.rays[1].clamp(min=0)
    rise = (elevation / elevation.max().clamp(min=1e-3)) ** 0.7
    zenith, low = (dice.color(choices, 0.05)[:, None, None] for choices in (_ZENITHS, _HORIZONS))
    size = (canvas.depth.shape[0], canvas.depth.shape[1])
    clouds = fractal_noise(size, dice.generator, cells=2, octaves=6, persistence=0.55)
    cover = ((clouds - dice.uniform(-0.3, 2.0)) * 0.8).clamp(0, dice.uniform(0.4, 0.95))
    blue = low * (1 - rise) + zenith * rise
    return blue * (1 - cover) + cover * dice.uniform(0.82, 0.97)


def _hills(canvas: Canvas, dice: Dice) -> None:
    width = canvas.depth.shape[1]
    for layer in range(dice.integer(0, 3)):
        rough = fractal_noise((8, width), dice.generator, cells=1, octaves=5)[4]
        outline = dice.uniform(0.02, 0.12) + dice.uniform(0.01, 0.05) * rough
        material = _plain(dice, _HILLS, noise=0.25, scale=60.0)
        canvas.paint_hill(outline, 900.0 / (1 + 2 * layer), material)


def _road(canvas: Canvas, dice: Dice) -> None:
    center, half = dice.uniform(-6, 6), dice.uniform(2.0, 6.0)
    road = _plain(dice, _ROADS, noise=0.08)
    flat = (1.0, 1.0, 1.0)
    canvas.paint_box((center - half, -1.0, -10.0), (center + half, 0.01, 600.0), road, shades=flat)
    light = torch.full((3,), 0.85)
    dashes = Material(road.color, light, cell=(0.3, 4.0), margin=0.2, noise=0.05)
    low, high = (center - 0.15, -1.0, -10.0), (center + 0.15, 0.02, 300.0)
    canvas.paint_box(low, high, dashes, shades=flat)


def _building(canvas: Canvas, dice: Dice) -> None:
    z, depth = dice.uniform(12, 140), dice.uniform(6, 20)
    side = 1 if dice.chance(0.5) else -1
    x, width = side * dice.uniform(3, 10 + 0.5 * z), dice.uniform(6, 20)
    wall = dice.color(_WALLS)
    material = Material(
        wall,
        dice.color(_WINDOWS),
        cell=(dice.uniform(1.2, 3.5), dice.uniform(2.2, 3.6)),
        margin=dice.uniform(0.15, 0.35),
        jitter=dice.uniform(0.05, 0.4),
        noise=0.08,
    )
    left = x if side > 0 else x - width
    shades = (dice.uniform(0.55, 1.0), 1.0, dice.uniform(0.6, 1.05))
    high = (left + width, dice.uniform(4, 32), z + depth)
    canvas.paint_box((left, 0.0, z), high, material, shades=shades)


def _tree(canvas: Canvas, dice: Dice) -> None:
    z = dice.uniform(6, 90)
    tall = dice.uniform(2, 11)
    foot = (dice.uniform(-0.7, 0.7) * z, z)
    canvas.paint_tree(foot, (tall * dice.uniform(0.5, 1.1), tall), dice.color(_LEAVES))


def _street_object(canvas: Canvas, dice: Dice) -> None:
    z = dice.uniform(4, 40)
    x = dice.uniform(-0.55, 0.55) * z
    thin = dice.chance(0.4)
    width, tall = (
        (0.15, dice.uniform(3, 7)) if thin else (dice.uniform(0.5, 3), dice.uniform(0.5, 2))
    )
    material = _plain(dice, _OBJECTS, noise=0.08)
    canvas.paint_box((x, 0.0, z), (x + width, tall, z + width), material, shades=(0.7, 1.1, 0.9))


def _indoor(dice: Dice, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    height, width = size
    eye, far, half = dice.uniform(1.2, 1.7), dice.uniform(3.0, 7.0), dice.uniform(1.6, 3.2)
    canvas = Canvas(
        size,
        focal=width * dice.uniform(0.75, 1.2),
        horizon=height * dice.uniform(0.35, 0.6),
        eye=eye,
        generator=dice.generator,
    )
    off, tall = dice.uniform(-0.6, 0.6), dice.uniform(2.4, 3.0)
    shades = (dice.uniform(0.75, 1.0), dice.uniform(0.85, 1.0), dice.uniform(0.75, 1.0))
    low, high = (off - half, 0.0, -1.0), (off + half, tall, far)
    canvas.paint_box(low, high, _plain(dice, _INTERIORS, noise=0.05), shades=shades, inside=True)
    planks = (dice.uniform(0.1, 0.5), dice.uniform(0.3, 1.5))
    floor = Material(
        dice.color(_FLOORS) * 0.8, dice.color(_FLOORS), planks, margin=0.04, jitter=0.08, noise=0.1
    )
    canvas.paint_box((low[0], -0.5, -1.0), (high[0], 0.005, far), floor)
    _wall_pieces(canvas, dice, low, high)
    for _ in range(dice.integer(3, 9)):
        _furniture(canvas, dice, low, high)
    return _lit(canvas, dice, (off, tall, 0.6 * far)), _indoor_depth(canvas, dice)


def _indoor_depth(canvas: Canvas, dice: Dice) -> Tensor:
    scale = _INDOOR_MEDIAN * dice.uniform(0.8, 1.25) / canvas.depth.median()
    return (canvas.depth * scale).clamp(0.05, _INDOOR_FARTHEST)


def _wall_pieces(
    canvas: Canvas,
    dice: Dice,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
) -> None:
    for _ in range(dice.integer(1, 4)):
        width, tall = dice.uniform(0.4, 1.4), dice.uniform(0.4, 1.2)
        x = dice.uniform(low[0], max(low[0] + 0.1, high[0] - width))
        y = dice.uniform(0.8, max(0.9, high[1] - tall))
        frame = Material(
            dice.color(_OBJECTS),
            dice.color(_OBJECTS + _INTERIORS),
            cell=(width, tall),
            margin=0.06,
            noise=0.3,
            noise_scale=0.3,
        )
        canvas.paint_box((x, y, high[2] - 0.05), (x + width, y + tall, high[2]), frame)


def _furniture(
    canvas: Canvas,
    dice: Dice,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
) -> None:
    width, tall, depth = dice.uniform(0.3, 1.4), dice.uniform(0.3, 1.9), dice.uniform(0.3, 1.0)
    x = dice.uniform(low[0], max(low[0] + 0.1, high[0] - width))
    z = dice.uniform(1.4, max(1.5, high[2] - depth))
    material = Material(
        dice.color(_FLOORS + _OBJECTS),
        dice.color(_OBJECTS + _INTERIORS + _FLOORS),
        cell=(dice.uniform(0.1, 0.7), dice.uniform(0.1, 0.7)),
        margin=dice.pick([0.03, 0.1, 0.5]),
        jitter=dice.uniform(0.0, 0.3),
        noise=dice.uniform(0.04, 0.15),
        noise_scale=0.6,
    )
    shades = (dice.uniform(0.55, 0.9), 1.1, dice.uniform(0.7, 1.0))
    canvas.paint_box((x, 0.0, z), (x + width, tall, z + depth), material, shades=shades)


def _lit(canvas: Canvas, dice: Dice, lamp: tuple[float, float, float]) -> Tensor:
    point = canvas.rays * canvas.depth
    source = torch.tensor([lamp[0], lamp[1] - canvas.eye, lamp[2]])[:, None, None]
    distance = (point - source).square().sum(dim=0)
    warm = torch.tensor([1.0, dice.uniform(0.88, 1.0), dice.uniform(0.75, 1.0)])[:, None, None]
    return canvas.color * warm * (0.45 + 1.1 / (1 + 0.35 * distance))


def _plain(
    dice: Dice, colors: tuple[tuple[float, float, float], ...], *, noise: float, scale: float = 4.0
) -> Material:
    color = dice.color(colors)
    return Material(color, color, noise=noise, noise_scale=scale)


def _developed(color: Tensor, dice: Dice) -> Tensor:
    """Return the image with uneven light, contrast, a soft lens and grain, in ``[0, 1]``."""
    size = (color.shape[-2], color.shape[-1])
    light = 1 + 0.08 * fractal_noise(size, dice.generator, cells=2, octaves=2)
    image = (color * light * dice.uniform(0.85, 1.15)).clamp(0, 1) ** dice.uniform(0.8, 1.5)
    soft = functional.avg_pool2d(image[None], 3, stride=1, padding=1, count_include_pad=False)[0]
    image = image + dice.uniform(0.3, 0.7) * (soft - image)
    grain = torch.randn(image.shape, generator=dice.generator)
    return (image + dice.uniform(0.002, 0.012) * grain).clamp(0, 1)

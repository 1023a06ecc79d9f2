"""Where training examples come from: scenes hazed on the fly, pairs, photographs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.dehazing.crops import cut_window, random_exposure, random_window
from coa_compress.tasks.dehazing.folders import Pair, SceneFile
from coa_compress.tasks.dehazing.haze import add_haze, transmission, typical_haze
from coa_compress.tasks.dehazing.hazing import HazeSettings, hazed
from coa_compress.tasks.dehazing.scenes import Scene
from coa_compress.tasks.dehazing.simulated import Shot
from coa_compress.tasks.dice import Dice
from coa_compress.tasks.folders import name_digest
from coa_compress.tasks.image_cache import ImageCache
from coa_compress.tasks.images import to_float

_PLAIN = HazeSettings()


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A whole image to measure or to show.

    Args:
        name: What the report calls it.
        load: Return the hazy image and its truth, float32, shape ``(3, height, width)``.
        files: What it is read from; none for a built-in one.
    """

    name: str
    load: Callable[[], tuple[Tensor, Tensor]]
    files: tuple[Path, ...] = ()


class Source(Protocol):
    """Images that training crops are drawn from."""

    def crop(self, side: int, dice: Dice) -> tuple[Tensor, Tensor]:
        """Return a hazy crop and its truth, float32, shape ``(3, side, side)``."""


@dataclass(frozen=True, slots=True, eq=False)
class SceneSource:
    """Clear images with depth, hazed anew each time.

    Args:
        scenes: In memory or on disk.
        cache: Decoded files.
        as_shot: Part of the crops whose exposure is left as it is, in [0, 1].
        haze: How often each kind of haze is used.
    """

    scenes: Sequence[Scene | SceneFile]
    cache: ImageCache
    as_shot: float = 0.25
    haze: HazeSettings = _PLAIN

    def crop(self, side: int, dice: Dice) -> tuple[Tensor, Tensor]:
        """Return a hazy crop and its truth, float32, shape ``(3, side, side)``."""
        scene = dice.pick(self.scenes)
        clear, depth = _opened(scene, self.cache)
        size = (clear.shape[1], clear.shape[2])
        window = random_window(size, side, dice)
        truth = cut_window(clear, window, side, size=size).clamp(0, 1)
        if not dice.chance(self.as_shot):
            truth = random_exposure(truth, dice)
        distance = cut_window(depth, window, side, size=size) * _unit(scene)
        return hazed(truth, distance, scene.domain, self.haze, dice)


@dataclass(frozen=True, slots=True, eq=False)
class PairSource:
    """Hazy images with truth on disk."""

    pairs: Sequence[Pair]
    cache: ImageCache

    def crop(self, side: int, dice: Dice) -> tuple[Tensor, Tensor]:
        """Return a hazy crop and its truth, float32, shape ``(3, side, side)``."""
        pair = dice.pick(self.pairs)
        hazy, clear = _opened_pair(pair, self.cache)
        size = (clear.shape[1], clear.shape[2])
        window = random_window(size, side, dice)
        return tuple(cut_window(image, window, side, size=size) for image in (hazy, clear))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Several sources, each drawn from with a probability.

    Args:
        parts: Weight and source.
    """

    parts: Sequence[tuple[float, Source]]

    def crop(self, side: int, dice: Dice) -> tuple[Tensor, Tensor]:
        """Return a hazy crop and its truth, float32, shape ``(3, side, side)``."""
        number = dice.weighted([weight for weight, _ in self.parts])
        return self.parts[number][1].crop(side, dice)


@dataclass(frozen=True, slots=True, eq=False)
class PhotographSource:
    """Unlabeled images, in memory or on disk."""

    images: Sequence[Shot | Path]
    cache: ImageCache

    def crop(self, side: int, dice: Dice) -> Tensor:
        """Return a crop, float32, shape ``(3, side, side)``."""
        image = self.load(dice.integer(0, len(self.images) - 1))
        size = (image.shape[1], image.shape[2])
        return cut_window(image, random_window(size, side, dice), side, size=size)

    def load(self, number: int) -> Tensor:
        """Return a whole image, uint8 or float, shape ``(3, height, width)``."""
        image = self.images[number]
        return self.cache.read(image) if isinstance(image, Path) else image.image

    def title(self, number: int) -> str:
        """Return what an image is called."""
        image = self.images[number]
        return image.stem if isinstance(image, Path) else image.name


def pair_example(pair: Pair, cache: ImageCache) -> Example:
    """Return a pair on disk as an example."""
    return Example(pair.name, partial(_load_pair, pair, cache), (pair.hazy, pair.clear))


def scene_example(scene: Scene | SceneFile, cache: ImageCache) -> Example:
    """Return a scene under haze that depends on nothing but its name."""
    files = (scene.clear, scene.depth) if isinstance(scene, SceneFile) else ()
    return Example(scene.name, partial(_load_scene, scene, cache), files)


def _load_pair(pair: Pair, cache: ImageCache) -> tuple[Tensor, Tensor]:
    hazy, clear = _opened_pair(pair, cache)
    return to_float(hazy), to_float(clear)


def _opened_pair(pair: Pair, cache: ImageCache) -> tuple[Tensor, Tensor]:
    hazy, clear = cache.read(pair.hazy), cache.read(pair.clear)
    height, width = hazy.shape[1:]
    return hazy, clear[:, pair.border :, pair.border :][:, :height, :width]


def _load_scene(scene: Scene | SceneFile, cache: ImageCache) -> tuple[Tensor, Tensor]:
    clear, depth = _opened(scene, cache)
    truth = to_float(clear)
    size = (truth.shape[1], truth.shape[2])
    distance = to_float(depth).float()[None] * _unit(scene)
    distance = functional.interpolate(distance, size, mode="bilinear", align_corners=False)[0]
    generator = torch.Generator().manual_seed(name_digest(scene.name))
    haze = typical_haze(scene.domain, generator)
    return add_haze(truth, transmission(distance, haze.beta), haze.airlight), truth


def _opened(scene: Scene | SceneFile, cache: ImageCache) -> tuple[Tensor, Tensor]:
    if isinstance(scene, Scene):
        return scene.clear, scene.depth
    return cache.read(scene.clear), cache.read(scene.depth, gray=True)


def _unit(scene: Scene | SceneFile) -> float:
    return scene.dmax if isinstance(scene, SceneFile) else 1.0

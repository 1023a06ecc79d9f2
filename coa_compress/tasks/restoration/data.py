"""Which images a network is compressed and measured on."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from coa_compress.artifacts import Batch
from coa_compress.errors import DataError
from coa_compress.tasks.batches import fixed_batches
from coa_compress.tasks.dehazing.photographs import photograph_scenes
from coa_compress.tasks.dehazing.scenes import scene_pool
from coa_compress.tasks.dehazing.sources import Mixture, SceneSource
from coa_compress.tasks.dice import Dice
from coa_compress.tasks.folders import (
    BUILTIN,
    digest_of_lines,
    locations,
    name_digest,
    spaced,
    stamp,
)
from coa_compress.tasks.image_cache import ImageCache
from coa_compress.tasks.images import to_float
from coa_compress.tasks.restoration.degradations import degraded
from coa_compress.tasks.restoration.folders import ImageFile, check_alike, read_images
from coa_compress.tasks.restoration.settings import RestorationSettings

_LOG = logging.getLogger(__name__)
# to be raised whenever the built-in scenes or photographs, or what is done to them, change
_BUILTIN_VERSION = "builtin-2"
_TURNED = 0.5
_BATCH = 4
_SEEDS = {"validation": 1299709, "test": 15485863}
_RGB = 3


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder setting stands for.

    Args:
        builtin: Whether the built-in images are among it.
        splits: The images of each folder, by its name.
    """

    builtin: bool
    splits: Mapping[str, Sequence[ImageFile]]

    @property
    def images(self) -> list[ImageFile]:
        """The images of all folders."""
        return [image for split in self.splits.values() for image in split]


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """Decodes images and their targets, float32 in ``[0, 1]``, shape ``(channels, ...)``.

    Args:
        cache: Decoded files.
        gray: Whether images have one channel, or three.
    """

    cache: ImageCache
    gray: bool

    def load(self, image: ImageFile, *, most: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return an image and its target, or their middle.

        Args:
            image: The files.
            most: Side of the middle in pixels of the input; None for all of it.
        """
        rows, columns = (min(length, most or length) for length in image.size)
        top, left = ((n - kept) // 2 for n, kept in zip(image.size, (rows, columns), strict=True))
        return self.part(image, top, left, rows, columns)

    def part(
        self, image: ImageFile, top: int, left: int, rows: int, columns: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return a part of an image, in pixels of the input, and of its target."""

        def cut(path: Path, scale: int) -> Tensor:
            down = slice(scale * top, scale * (top + rows))
            along = slice(scale * left, scale * (left + columns))
            return to_float(self.cache.read(path, gray=self.gray)[:, down, along])

        target = None if image.target is None else cut(image.target, image.scale)
        return cut(image.input, 1), target


class RestorationData:
    """The images of one network; folders are read at once, images are decoded when needed.

    Args:
        settings: Names the folders.
        seed: Seed of the fixed built-in crops.
        channels: Channels of the input: 1 reads images as gray ones.

    Raises:
        DataError: If a folder is unusable, or an image is smaller than a crop.
    """

    def __init__(self, settings: RestorationSettings, *, seed: int, channels: int) -> None:
        self._settings = settings
        self._seed = seed
        self._channels = channels
        self.reader = Reader(ImageCache(), gray=channels == 1)
        self.train = _found(settings.train)
        held_out = Found(builtin=not self.train.images, splits={})
        self.test = held_out if settings.test is None else _found(settings.test)
        self._check()

    @property
    def images(self) -> list[ImageFile]:
        """Every image in the folders."""
        return [*self.train.images, *self.test.images]

    @property
    def paired(self) -> bool:
        """Whether there is a target to train for."""
        return any(image.target is not None for image in self.train.images)

    def fingerprint(self) -> dict[str, list[str]]:
        """Return the version of the built-in images and a digest of the files, by setting.

        Raises:
            DataError: If a file is gone.
        """
        used = {"train": self.train, "test": self.test}
        return {
            role: [
                *([_BUILTIN_VERSION] if found.builtin else ()),
                *digest_of_lines(stamp(path) for image in found.images for path in image.files),
            ]
            for role, found in used.items()
        }

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """Return random training crops, with their targets if there are any."""
        dice = Dice(generator)
        return self._stacked([self._random_crop(dice) for _ in range(size)])

    @cached_property
    def validation_crops(self) -> tuple[Batch, ...]:
        """Fixed crops: the middles of the held-out images, or built-in ones."""
        if self.held_out:
            return self.middles(self.held_out)
        return self._builtin("validation", self._settings.validation_images)

    @cached_property
    def test_splits(self) -> Mapping[str, Sequence[ImageFile]]:
        """The images to measure on, by the name of their folder."""
        if self._settings.test is None and self.held_out:
            return {"held out": self.held_out}
        limit = self._settings.max_test_images
        return {name: spaced(images, limit) for name, images in self.test.splits.items()}

    @cached_property
    def builtin_test(self) -> tuple[Batch, ...]:
        """Fixed built-in crops to measure on; none if folders are measured alone."""
        return self._builtin("test", self._settings.test_images) if self.test.builtin else ()

    def middles(self, images: Sequence[ImageFile]) -> tuple[Batch, ...]:
        """Return the middle crop of each image, in batches."""
        crops = [self.reader.load(image, most=self._settings.crop) for image in images]
        return tuple(
            self._stacked(crops[start : start + _BATCH]) for start in range(0, len(crops), _BATCH)
        )

    @cached_property
    def held_out(self) -> list[ImageFile]:
        """Images that are not trained on; none if only built-in ones are used."""
        # all inputs of one target are held out together, whatever their order on the disk
        by_target: dict[Path, list[ImageFile]] = {}
        for image in self.train.images:
            by_target.setdefault(image.files[-1], []).append(image)
        order = sorted(by_target, key=lambda path: (name_digest(path.name), path))
        chosen = order[: min(self._settings.validation_images, max(1, len(order) // 2))]
        return [by_target[path][0] for path in chosen]

    @cached_property
    def _training(self) -> list[ImageFile]:
        held = {image.files[-1] for image in self.held_out}
        kept = [image for image in self.train.images if image.files[-1] not in held]
        return kept or self.train.images

    def _random_crop(self, dice: Dice) -> tuple[Tensor, Tensor | None]:
        if self.train.builtin and not (self._training and dice.chance(0.5)):
            return self._builtin_crop(dice), None
        image, side = dice.pick(self._training), self._settings.crop
        top, left = (dice.integer(0, length - side) for length in image.size)
        turns, mirrored = dice.integer(0, 3) if dice.chance(_TURNED) else 0, dice.chance(0.5)

        def turned(part: Tensor) -> Tensor:
            part = torch.rot90(part, turns, dims=(1, 2))
            return part.flip(2) if mirrored else part

        crop, target = self.reader.part(image, top, left, side, side)
        return turned(crop), None if target is None else turned(target)

    def _stacked(self, crops: Sequence[tuple[Tensor, Tensor | None]]) -> Batch:
        targets = [target for _, target in crops if target is not None]
        return Batch(
            torch.stack([crop for crop, _ in crops]), torch.stack(targets) if targets else None
        )

    def _builtin(self, split: str, count: int) -> tuple[Batch, ...]:
        def draw(size: int, generator: torch.Generator) -> Batch:
            dice = Dice(generator)
            return Batch(torch.stack([self._builtin_crop(dice) for _ in range(size)]))

        return fixed_batches(draw, count, seed=_SEEDS[split] + self._seed)

    @cached_property
    def _source(self) -> Mixture:
        images = scene_pool(1, 24), photograph_scenes("train")
        return Mixture([(0.5, SceneSource(scenes, self.reader.cache)) for scenes in images])

    def _builtin_crop(self, dice: Dice) -> Tensor:
        image = degraded(*self._source.crop(self._settings.crop, dice), dice)
        return image if self._channels == _RGB else _with_channels(image, self._channels)

    def _check(self) -> None:
        images = self.train.images
        check_alike([*images, *(self.test.images if self.paired else ())])
        if self.paired and (self.train.builtin or self.test.builtin):
            message = f"built-in images have no target, and those of {self._settings.train} have: "
            message += "name folders alone"
            raise DataError(message)
        if self.images and self._channels not in (1, _RGB):
            message = (
                f"the network takes {self._channels} channels, and images in folders have 1 or 3: "
                "wrap it so that it takes 3, or write a task of your own"
            )
            raise DataError(message)
        small = next((i for i in self._cropped if min(i.size) < self._settings.crop), None)
        if small is not None:
            height, width = small.size
            message = (
                f"{small.input} is {width}x{height}, smaller than a crop of "
                f"{self._settings.crop}: set task.crop to {min(small.size)} or less"
            )
            raise DataError(message)
        if len({image.files[-1] for image in images}) == 1:
            _LOG.warning("%s is all there is to train on: it is validated on too", images[0].input)
        tested = {path for image in self.test.images for path in image.files}
        for path in [path for image in images for path in image.files if path in tested][:1]:
            _LOG.warning("%s is in both train and test: its figures mean little", path)

    @property
    def _cropped(self) -> list[ImageFile]:
        """The images that crops are taken from: to train on, or to hold against the teacher."""
        return [*self.train.images, *(image for image in self.test.images if not image.target)]


def _found(setting: str | tuple[str, ...]) -> Found:
    named = locations(setting)
    splits: dict[str, tuple[ImageFile, ...]] = {}
    for name in named:
        if name != BUILTIN:
            path = Path(name).expanduser()
            title = path.resolve().name
            title = title if title not in splits else f"{path.resolve().parent.name}_{title}"
            splits[title] = (*splits.get(title, ()), *read_images(path))
            _LOG.info("%s: %d images", path, len(splits[title]))
    return Found(BUILTIN in named, splits)


def _with_channels(image: Tensor, channels: int) -> Tensor:
    """Return a gray image for one channel, else the RGB channels again and again."""
    if channels == 1:
        return image.mean(dim=0, keepdim=True)
    return image[torch.arange(channels) % _RGB]

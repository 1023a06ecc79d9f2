"""Which images the dehazing task trains, validates, adapts and measures on."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from coa_compress.errors import DataError
from coa_compress.tasks.dehazing.folders import (
    Contents,
    Pair,
    SceneFile,
    beside_truth,
    read_folder,
    with_photographs,
    with_truth,
)
from coa_compress.tasks.dehazing.photographs import photograph_scenes
from coa_compress.tasks.dehazing.scenes import Scene, ScenePool, scene_pool
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dehazing.simulated import Shot, simulated_real
from coa_compress.tasks.dehazing.sources import (
    Example,
    Mixture,
    PairSource,
    PhotographSource,
    SceneSource,
    Source,
    pair_example,
    scene_example,
)
from coa_compress.tasks.folders import (
    BUILTIN,
    digest_of_lines,
    locations,
    name_digest,
    spaced,
    stamp,
)
from coa_compress.tasks.image_cache import ImageCache

_LOG = logging.getLogger(__name__)
# to be raised whenever the built-in scenes, photographs or simulated images change
_BUILTIN_VERSION = "builtin-1"
_HELD_OUT = {"outdoor": 0.45, "indoor": 0.25, "pairs": 0.25}
_PROCEDURAL_SHARE = 0.05
_PHOTOGRAPH_SHARE = 0.4
_TRAINING_POOL = (1, 24)
_VALIDATION_POOL = (2, 15)
_TEST_POOL = (3, 8)
_MOST_HELD_OUT = 16
_FEW_JUDGES = 10
_MOST_STOPPING = 10


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder setting stands for.

    Args:
        builtin: Whether the built-in images are among it.
        contents: What the folders hold.
    """

    builtin: bool
    contents: tuple[Contents, ...]

    @property
    def pairs(self) -> list[Pair]:
        """Every pair."""
        return [pair for part in self.contents for pair in part.pairs]

    @property
    def scenes(self) -> list[SceneFile]:
        """Every scene."""
        return [scene for part in self.contents for scene in part.scenes]

    @property
    def photographs(self) -> list[Path]:
        """Every image without truth."""
        return [path for part in self.contents for path in part.photographs]


@dataclass(frozen=True, slots=True)
class Held:
    """An item that is kept out of training.

    Args:
        key: Path of its truth; everything with the same truth is kept out too.
        item: The item that is validated on.
    """

    key: str
    item: Pair | SceneFile


class DehazingData:
    """The images of one task; folders are checked at once, images are decoded when needed.

    Args:
        settings: Names the folders.

    Raises:
        DataError: If a folder is missing or unusable.
    """

    def __init__(self, settings: DehazingSettings) -> None:
        self._settings = settings
        self.cache = ImageCache()
        self._train = _found(settings.train, with_truth)
        self._real = _found(settings.real, with_photographs)
        self._test = _found(settings.test, beside_truth)
        self._weights = self._weights_of_kinds()
        self._warn_of_leaks()

    def fingerprint(self) -> dict[str, list[str]]:
        """Return the version of the built-in images and a digest of the files, by setting.

        Raises:
            DataError: If a file is gone.
        """
        used: dict[str, Sequence[Pair | SceneFile | Path]] = {
            "train": [*self._train.pairs, *self._train.scenes],
            "real": self._real.photographs,
            "test": [*self._test.pairs, *self._test.scenes, *self._test.photographs],
        }
        return {
            role: [_BUILTIN_VERSION, *digest_of_lines(map(_described, items))]
            for role, items in used.items()
        }

    @cached_property
    def training(self) -> Source:
        """Hazy crops with truth; nothing of the validation split."""
        held = {item.key for item in self._held_out}
        groups = {
            name: [item for item in self._groups[name] if _key(item) not in held]
            for name in self._weights
        }
        procedural = 0.5 if self._train.builtin else _PROCEDURAL_SHARE
        scale = (1 - procedural) / (sum(self._weights.values()) or 1.0)
        parts = [
            (self._weights[kind] * scale, self._source(items)) for kind, items in groups.items()
        ]
        return Mixture([*parts, (procedural, self.procedural)])

    @cached_property
    def procedural(self) -> Source:
        """Crops of the built-in training scenes and photographs."""
        scenes = ScenePool(*_TRAINING_POOL, clutter=self._settings.clutter)
        return Mixture(
            [
                (1 - _PHOTOGRAPH_SHARE, self._hazed(scenes)),
                (_PHOTOGRAPH_SHARE, self._hazed(photograph_scenes("train"))),
            ]
        )

    @cached_property
    def validation(self) -> tuple[Example, ...]:
        """Whole images for validation: split off the training folders, else built-in ones."""
        found = tuple(self._example(held.item) for held in self._held_out)
        if found:
            return found
        scenes = photograph_scenes("validation") + scene_pool(*_VALIDATION_POOL)
        return tuple(
            scene_example(scene, self.cache) for scene in scenes[: self._settings.validation_images]
        )

    @cached_property
    def adaptation(self) -> PhotographSource:
        """Unlabelled real images to adapt to."""
        return PhotographSource(self._real_split[0][self._n_stopping :], self.cache)

    @cached_property
    def stopping(self) -> PhotographSource:
        """Real images that say when to stop; neither adapted to nor judged on by the gate."""
        images = self._real_split[0]
        return PhotographSource(images[: self._n_stopping] or images, self.cache)

    @cached_property
    def gate(self) -> PhotographSource:
        """Real images held out from adaptation, for the gate."""
        return PhotographSource(self._real_split[1], self.cache)

    @cached_property
    def test(self) -> Mapping[str, tuple[Example, ...]]:
        """Whole images by test split."""
        splits = splits_of(self._test.contents, self.cache, limit=self._settings.max_test_images)
        if self._test.builtin:
            scenes = photograph_scenes("test") + scene_pool(*_TEST_POOL)
            chosen = spaced(scenes, self._settings.max_test_images)
            splits[BUILTIN] = tuple(scene_example(scene, self.cache) for scene in chosen)
        return splits

    @cached_property
    def test_real(self) -> PhotographSource:
        """Real images for the report: beside the test pairs, else those of the gate."""
        images: Sequence[Shot | Path] = self._test.photographs
        if not images:
            builtin = self._real.builtin and not self._real.photographs
            images = simulated_real("test") if builtin else self.gate.images
        return PhotographSource(spaced(images, self._settings.max_test_images), self.cache)

    def test_digests(self) -> dict[str, str]:
        """Return what identifies the images of each test split, wherever its folder lies."""
        return {name: split_digest(examples) for name, examples in self.test.items()}

    @property
    def _n_stopping(self) -> int:
        return min(_MOST_STOPPING, len(self._real_split[0]) // 10)

    @cached_property
    def _real_split(self) -> tuple[list[Shot | Path], list[Shot | Path]]:
        paths = sorted(self._real.photographs, key=lambda path: name_digest(path.name))
        held = min(_MOST_HELD_OUT, max(1, len(paths) // 2))
        adapting: list[Shot | Path] = list(paths[held:] or paths)
        judging: list[Shot | Path] = list(paths[:held])
        if not self._real.builtin and held < _FEW_JUDGES:
            _LOG.warning(
                "few real photographs for a verdict, %d: add the built-in ones, "
                "task.real=builtin,%s",
                len(paths),
                ",".join(str(part.path) for part in self._real.contents),
            )
        if self._real.builtin:
            adapting += simulated_real("train")
            judging += simulated_real("validation")
        return adapting, judging

    def _weights_of_kinds(self) -> dict[str, float]:
        """Return how often each kind in the training folders is drawn, without what is never."""
        mixture = self._settings.mixture
        present = {kind: getattr(mixture, kind) for kind, items in self._groups.items() if items}
        weights = {kind: weight for kind, weight in present.items() if weight}
        if present and not weights:
            message = (
                f"task.mixture gives 0 to all that {self._settings.train} holds "
                f"({', '.join(present)}): give one of them a weight above 0"
            )
            raise DataError(message)
        return weights

    @cached_property
    def _groups(self) -> dict[str, list[Pair | SceneFile]]:
        scenes = self._train.scenes
        groups: dict[str, list[Pair | SceneFile]] = {
            domain: [scene for scene in scenes if scene.domain == domain]
            for domain in ("outdoor", "indoor")
        }
        groups["pairs"] = list(self._train.pairs)
        return groups

    @cached_property
    def _held_out(self) -> list[Held]:
        present = {name: items for name, items in self._groups.items() if items}
        total = sum(_HELD_OUT[name] for name in present)
        held = []
        for name, items in present.items():
            by_truth = {_key(item): item for item in reversed(items)}
            quota = max(1, round(self._settings.validation_images * _HELD_OUT[name] / total))
            order = sorted(by_truth, key=lambda key: name_digest(Path(key).name))
            chosen = order[: min(quota, len(order) // 2)]
            held += [Held(key, by_truth[key]) for key in chosen]
        return held[: self._settings.validation_images]

    def _source(self, items: Sequence[Pair | SceneFile]) -> Source:
        pairs = [item for item in items if isinstance(item, Pair)]
        if pairs:
            return PairSource(pairs, self.cache)
        return self._hazed([item for item in items if isinstance(item, SceneFile)])

    def _hazed(self, scenes: Sequence[Scene | SceneFile]) -> SceneSource:
        return SceneSource(scenes, self.cache, self._settings.as_shot, self._settings.haze)

    def _example(self, item: Pair | SceneFile) -> Example:
        if isinstance(item, Pair):
            return pair_example(item, self.cache)
        return scene_example(item, self.cache)

    def _warn_of_leaks(self) -> None:
        trained, tested = (_keys(found) for found in (self._train, self._test))
        for shared in sorted(trained & tested)[:1]:
            _LOG.warning("%s is in both train and test: its figures mean little", shared)


def splits_of(
    contents: Sequence[Contents], cache: ImageCache, *, limit: int | None = None
) -> dict[str, tuple[Example, ...]]:
    """Return the examples of each folder that has truths, by the name of the folder.

    Args:
        contents: What the folders hold.
        cache: Decoded files.
        limit: Most images of a split, spaced evenly, or None for all.
    """
    splits: dict[str, tuple[Example, ...]] = {}
    for part in contents:
        if not part.has_truth:
            continue
        pairs = [pair_example(pair, cache) for pair in part.pairs]
        examples = pairs + [scene_example(scene, cache) for scene in part.scenes]
        path = part.path.resolve()
        name = path.name if path.name not in splits else f"{path.parent.name}_{path.name}"
        splits[name] = (*splits.get(name, ()), *spaced(examples, limit))
    return splits


def split_digest(examples: Sequence[Example]) -> str:
    """Return a digest of the names and file sizes of examples, 16 hexadecimal digits.

    Built-in examples, which have no files, count by the version of the built-in images. A file
    that is gone counts as empty.
    """
    digest = hashlib.sha256()
    for example in examples:
        sizes = [path.stat().st_size if path.is_file() else 0 for path in example.files]
        digest.update(f"{example.name} {sizes or _BUILTIN_VERSION}\n".encode())
    return digest.hexdigest()[:16]


def _found(
    setting: str | tuple[str, ...],
    usable: Callable[[Sequence[Contents], Path], list[Contents]],
) -> Found:
    named = locations(setting)
    contents: list[Contents] = []
    for name in named:
        if name != BUILTIN:
            path = Path(name).expanduser()
            contents += usable(read_folder(path), path)
    return Found(BUILTIN in named, tuple(contents))


def _described(item: Pair | SceneFile | Path) -> str:
    """Return what identifies an item and its files, without opening them."""
    if isinstance(item, Path):
        return stamp(item)
    if isinstance(item, Pair):
        return f"{stamp(item.hazy)} {stamp(item.clear)}"
    return f"{stamp(item.clear)} {stamp(item.depth)} {item.dmax!r} {item.domain}"


def _keys(found: Found) -> set[str]:
    return {_key(pair) for pair in found.pairs} | {_key(scene) for scene in found.scenes}


def _key(item: Pair | SceneFile) -> str:
    return str(item.clear.resolve())

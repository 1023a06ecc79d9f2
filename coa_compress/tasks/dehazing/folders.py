"""Folder layouts of dehazing data, recognized and checked without decoding an image."""

import csv
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coa_compress.errors import DataError
from coa_compress.tasks.folders import images_below, seen, shorter_names, subfolders
from coa_compress.tasks.images import image_size, list_images

_LOG = logging.getLogger(__name__)
_HAZY_NAMES = frozenset({"hazy", "haze", "input", "in"})
_TRUTH_NAMES = frozenset({"gt", "clear", "clean", "target"})
_MAP_NAMES = frozenset({"depth", "trans", "transmission"})
_COLUMNS = ("clear", "depth", "dmax", "domain")
_DOMAINS = frozenset({"outdoor", "indoor"})
_HAZY_TAIL = re.compile(r"[_-](hazy|haze)$")
_TRUTH_TAIL = re.compile(r"[_-](gt|clear|clean)$")
_MAX_ASPECT_ERROR = 0.05
# NYU2 frames have a white border of 10 pixels: some releases of RESIDE cut it off the hazy images
_BORDER = 10


@dataclass(frozen=True, slots=True)
class Pair:
    """A hazy image and its truth, of equal size once the border is cut off.

    Args:
        name: Name of the hazy file without its suffix.
        hazy: The hazy image.
        clear: Its truth.
        border: Pixels on each side of the truth that the hazy image does not show.
    """

    name: str
    hazy: Path
    clear: Path
    border: int = 0


@dataclass(frozen=True, slots=True)
class SceneFile:
    """A clear image with depth, to be hazed on the fly.

    Args:
        name: Name of the clear file without its suffix.
        clear: The image.
        depth: A gray image of the same aspect.
        dmax: Depth of the brightest level, in the unit of the domain.
        domain: ``outdoor`` or ``indoor``.
    """

    name: str
    clear: Path
    depth: Path
    dmax: float
    domain: str


@dataclass(frozen=True, slots=True)
class Contents:
    """What one folder holds, in one layout or several.

    Args:
        path: The folder.
        pairs: Hazy images with truth.
        scenes: Clear images with depth.
        photographs: Images without truth.
    """

    path: Path
    pairs: tuple[Pair, ...] = ()
    scenes: tuple[SceneFile, ...] = ()
    photographs: tuple[Path, ...] = ()

    @property
    def has_truth(self) -> bool:
        """Whether there is anything to learn from or to measure against."""
        return bool(self.pairs or self.scenes)


def read_folder(path: Path) -> tuple[Contents, ...]:
    """Return what a folder and the folders directly in it hold, by name, empty ones left out.

    Known layouts: ``hazy/`` beside ``gt/`` or ``clear/`` (RESIDE, Haze4K, O-HAZE, THaze; the images
    may be in folders of their own, as the parts of OTS), ``clear/`` and ``depth/`` with
    ``index.csv``, ``01_hazy.png`` beside ``01_GT.png`` (NH-HAZE), and plain images (RTTS, URHI).
    ``index.csv`` has the columns clear, depth, dmax and domain. Where there is none of these, one
    more level is looked through.

    Raises:
        DataError: If the folder is missing, holds no image, or an image in it has no counterpart
            of the same size.
    """
    if not path.is_dir():
        message = f"no folder {path}: give an existing folder of images"
        raise DataError(message)
    held = _held(path) or [part for folder in subfolders(path).values() for part in _held(folder)]
    if not held:
        message = (
            f"no images in {path}: found {seen(path)}; expected hazy/ and gt/, clear/ and depth/, "
            "or image files"
        )
        raise DataError(message)
    for contents in held:
        _log_contents(contents)
    return tuple(held)


def with_truth(found: Sequence[Contents], path: Path) -> list[Contents]:
    """Return those that hold pairs or scenes.

    Raises:
        DataError: If none does.
    """
    kept = [contents for contents in found if contents.has_truth]
    if not kept:
        message = (
            f"no pairs in {path}: only images without truth; "
            "expected hazy/ and gt/, or clear/, depth/ and index.csv"
        )
        raise DataError(message)
    return kept


def beside_truth(found: Sequence[Contents], path: Path) -> list[Contents]:
    """Return everything, photographs too, where there is at least one pair or scene.

    Raises:
        DataError: If there is none.
    """
    with_truth(found, path)
    return list(found)


def with_photographs(found: Sequence[Contents], path: Path) -> list[Contents]:
    """Return those that hold images without truth; where none does, the hazy images of pairs.

    Raises:
        DataError: If there is neither.
    """
    kept = [contents for contents in found if contents.photographs]
    if not kept:
        kept = [
            replace(contents, photographs=tuple(pair.hazy for pair in contents.pairs))
            for contents in found
            if contents.pairs
        ]
    if not kept:
        message = f"no hazy images in {path}: expected image files, or hazy/ and gt/"
        raise DataError(message)
    return kept


def _held(path: Path) -> list[Contents]:
    """Return what a folder and the folders directly in it hold, empty ones left out."""
    found = [_read_one(path)]
    used = subfolders(path)
    roles = _HAZY_NAMES | _TRUTH_NAMES | _MAP_NAMES if _is_layout(used) else frozenset()
    found += [_read_one(folder) for name, folder in sorted(used.items()) if name not in roles]
    return [contents for contents in found if contents.has_truth or contents.photographs]


def _read_one(path: Path) -> Contents:
    folders = subfolders(path)
    hazy = _pick(folders, _HAZY_NAMES)
    truth = _pick(folders, _TRUTH_NAMES)
    scenes: tuple[SceneFile, ...] = ()
    pairs: tuple[Pair, ...] = ()
    index = path / "index.csv"
    # RESIDE has depth beside its pairs, in files that are no images
    if truth is not None and "depth" in folders and (hazy is None or index.exists()):
        scenes = _read_index(index)
    if truth is not None and hazy is not None:
        pairs = _match(images_below(hazy), images_below(truth), path)
    photographs = list_images(path)
    if hazy is not None and truth is None:
        photographs += images_below(hazy)
    marked = [image for image in photographs if _HAZY_TAIL.search(image.stem.lower())]
    truths = [image for image in photographs if _TRUTH_TAIL.search(image.stem.lower())]
    if marked and truths:
        pairs += _match(marked, truths, path)
        photographs = []
    for image in photographs:
        image_size(image)
    return Contents(path, pairs, scenes, tuple(photographs))


def _is_layout(folders: Mapping[str, Path]) -> bool:
    return _pick(folders, _HAZY_NAMES) is not None or "depth" in folders


def _pick(folders: Mapping[str, Path], names: frozenset[str]) -> Path | None:
    for name in sorted(names & folders.keys()):
        return folders[name]
    return None


def _match(hazy: Sequence[Path], truths: Sequence[Path], path: Path) -> tuple[Pair, ...]:
    if not hazy or not truths:
        message = f"no pairs in {path}: {len(hazy)} hazy images and {len(truths)} truths: add both"
        raise DataError(message)
    by_stem = {truth.stem.lower(): truth for truth in truths}
    by_stem |= {_TRUTH_TAIL.sub("", stem): truth for stem, truth in by_stem.items()}
    sizes: dict[Path, tuple[int, int]] = {}
    pairs = []
    for image in hazy:
        truth = next((by_stem[stem] for stem in _stems(image) if stem in by_stem), None)
        if truth is None:
            message = (
                f"no truth for {image} in {truths[0].parent}: add {image.name} there, "
                "or remove the hazy image"
            )
            raise DataError(message)
        # RESIDE has up to 35 hazy images of one truth
        sizes[truth] = sizes.get(truth) or image_size(truth)
        pairs.append(Pair(image.stem, image, truth, _border(image, truth, sizes[truth])))
    return tuple(pairs)


def _stems(hazy: Path) -> Iterator[str]:
    stem = hazy.stem.lower()
    yield stem
    yield from shorter_names(_HAZY_TAIL.sub("", stem))


def _border(hazy: Path, clear: Path, clear_size: tuple[int, int]) -> int:
    (height, width), (clear_height, clear_width) = image_size(hazy), clear_size
    beyond = {clear_height - height, clear_width - width}
    if beyond == {0}:
        return 0
    if beyond == {2 * _BORDER}:
        return _BORDER
    message = (
        f"sizes differ: {hazy} is {width}x{height}, {clear} is {clear_width}x{clear_height}: "
        "crop or resize one of them"
    )
    raise DataError(message)


def _read_index(path: Path) -> tuple[SceneFile, ...]:
    if not path.is_file():
        message = f"no file {path}: it must list {', '.join(_COLUMNS)} for each clear image"
        raise DataError(message)
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            reader = csv.DictReader(file)
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error):
            message = f"cannot read {path}: not a table: save it as comma-separated UTF-8"
            raise DataError(message) from None
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        message = f"no column {missing[0]} in {path}: expected {', '.join(_COLUMNS)}"
        raise DataError(message)
    return tuple(_scene(path, line, row) for line, row in enumerate(rows, start=2))


def _scene(index: Path, line: int, row: Mapping[str, str | None]) -> SceneFile:
    where = f"{index}:{line}"
    cells = {name: (row[name] or "").strip() for name in _COLUMNS}
    files = [index.parent / cells[name] for name in ("clear", "depth")]
    for file in files:
        if not file.is_file():
            message = f"{where} names {file}, which does not exist: add the file or remove the line"
            raise DataError(message)
    if cells["domain"] not in _DOMAINS:
        message = f"{where} has the domain {cells['domain']!r}: use outdoor or indoor"
        raise DataError(message)
    dmax = _positive(cells["dmax"])
    if dmax is None:
        message = f"{where} has the dmax {cells['dmax']!r}: use a number above 0"
        raise DataError(message)
    _check_equal_aspects(*files)
    return SceneFile(files[0].stem, files[0], files[1], dmax, cells["domain"])


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None


def _check_equal_aspects(clear: Path, depth: Path) -> None:
    (height, width), (depth_height, depth_width) = image_size(clear), image_size(depth)
    difference = (height / width) / (depth_height / depth_width) - 1
    if abs(difference) > _MAX_ASPECT_ERROR:
        message = (
            f"aspects differ: {clear} is {width}x{height}, "
            f"{depth} is {depth_width}x{depth_height}: make the depth from the same view"
        )
        raise DataError(message)


def _log_contents(contents: Contents) -> None:
    _LOG.info(
        "%s: %d pairs, %d scenes, %d photographs",
        contents.path,
        len(contents.pairs),
        len(contents.scenes),
        len(contents.photographs),
    )

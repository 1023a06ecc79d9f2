"""Folders of images to restore, with or without what they should become."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from coa_compress.errors import DataError
from coa_compress.tasks.folders import images_below, seen, shorter_names, subfolders
from coa_compress.tasks.images import image_size, list_images

_INPUTS = frozenset(
    {"input", "inputs", "lq", "lr", "low", "lowlight", "blur", "blurry", "rain", "rainy"}
    | {"noise", "noisy", "hazy", "haze", "degraded"}
)
_TARGETS = frozenset(
    {"target", "targets", "gt", "hq", "hr", "high", "sharp", "norain", "clean", "clear"}
    | {"groundtruth"}
)
_ROLES = _INPUTS | _TARGETS
_SPLIT = re.compile(r"[_\- .]+")
# DIV2K calls the input of 0801.png 0801x4.png
_SCALED = re.compile(r"(?<=\d)x\d$")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image to restore.

    Args:
        name: Name of its file without the suffix.
        input: Its file.
        size: Height and width of the input.
        target: What it should become, or None where nobody knows.
        scale: How many times higher and wider the target is.
    """

    name: str
    input: Path
    size: tuple[int, int]
    target: Path | None = None
    scale: int = 1

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that it is read from."""
        return (self.input,) if self.target is None else (self.input, self.target)


def read_images(path: Path) -> tuple[ImageFile, ...]:
    """Return the images of a folder, found by the names of folders and files; none is decoded.

    Known layouts: a folder of inputs beside one of targets, named with a word such as ``input``,
    ``lq``, ``low``, ``blur``, ``rain``, ``noisy`` or ``LR``, and ``target``, ``gt``, ``high``,
    ``sharp``, ``norain``, ``clean`` or ``HR``; inputs and targets in one folder, told apart by
    such a word in their names; images alone. Where there is none of these, the folders in it are
    read as if they were one. A target has the name of its input, but for such words and an ``x4``
    at the end, and may be a whole number of times larger.

    Raises:
        DataError: If the folder is missing or holds no image, an input has no target or several,
            the sizes do not fit, or some images have a target and others not.
    """
    if not path.is_dir():
        message = f"no folder {path}: give an existing folder of images"
        raise DataError(message)
    found = _read_one(path) or tuple(
        image for folder in subfolders(path).values() for image in _read_one(folder)
    )
    if not found:
        message = (
            f"no images in {path}: found {seen(path)}; expected input/ and target/, or image files"
        )
        raise DataError(message)
    check_alike(found)
    return found


def check_alike(images: Sequence[ImageFile]) -> None:
    """Check that all images have a target of the same scale, or none has one.

    Raises:
        DataError: If they do not.
    """
    for image in images[1:]:
        first = images[0]
        if (image.target is None) != (first.target is None):
            alone, paired = (image, first) if image.target is None else (first, image)
            message = (
                f"{paired.input} has a target and {alone.input} has none: name folders of one kind"
            )
            raise DataError(message)
        if image.scale != first.scale:
            message = (
                f"the target of {image.input} is {image.scale} times larger, and that of "
                f"{first.input} {first.scale} times: name folders of one scale"
            )
            raise DataError(message)


def _read_one(path: Path) -> tuple[ImageFile, ...]:
    folders = subfolders(path)
    inputs, targets = (_only(folders, words, path) for words in (_INPUTS, _TARGETS))
    if inputs is not None and targets is not None:
        return tuple(_matched(images_below(inputs), images_below(targets), path))
    images = list_images(path) if inputs is None else images_below(inputs)
    by_role = {role: [i for i in images if _words(i.stem) & role] for role in (_INPUTS, _TARGETS)}
    if all(by_role.values()) and len(images) == sum(map(len, by_role.values())):
        return tuple(_matched(by_role[_INPUTS], by_role[_TARGETS], path))
    return tuple(ImageFile(image.stem, image, image_size(image)) for image in images)


def _only(folders: Mapping[str, Path], words: frozenset[str], path: Path) -> Path | None:
    """Return the folder that is named as one of the words, or with one, if there is one."""
    named = [folder for name, folder in folders.items() if _words(name) & words]
    # GoPro has blur/ and blur_gamma/
    named = [folder for folder in named if folder.name.lower() in words] or named
    if len(named) > 1:
        message = f"{named[0].name}/ and {named[1].name}/ in {path} are of one kind: keep one"
        raise DataError(message)
    return named[0] if named else None


def _matched(inputs: Sequence[Path], targets: Sequence[Path], path: Path) -> Iterator[ImageFile]:
    if not inputs or not targets:
        message = f"no pairs in {path}: {len(inputs)} inputs and {len(targets)} targets: add both"
        raise DataError(message)
    size_of = cache(image_size)  # a target may have many inputs
    exact, loose = _by_name(targets, lambda stem: stem), _by_name(targets, _bare)
    for image in inputs:
        names = [image.stem.lower(), *shorter_names(_bare(image.stem))]
        found = next(
            (named[name] for name in names for named in (exact, loose) if name in named), []
        )
        if not found:
            message = (
                f"no target for {image} in {targets[0].parent}: add {image.name} there, "
                "or remove the input"
            )
            raise DataError(message)
        if len(found) > 1:
            message = f"{found[0]} and {found[1]} could both be the target of {image}: rename one"
            raise DataError(message)
        yield _paired(image, found[0], size_of(found[0]))


def _paired(image: Path, target: Path, target_size: tuple[int, int]) -> ImageFile:
    (height, width), (target_height, target_width) = image_size(image), target_size
    scale = max(1, target_height // height)
    if (target_height, target_width) != (scale * height, scale * width):
        message = (
            f"sizes differ: {image} is {width}x{height}, {target} is {target_width}x"
            f"{target_height}: make the target as large, or a whole number of times larger"
        )
        raise DataError(message)
    return ImageFile(image.stem, image, (height, width), target, scale)


def _by_name(paths: Iterable[Path], name: Callable[[str], str]) -> dict[str, list[Path]]:
    named: dict[str, list[Path]] = {}
    for path in paths:
        named.setdefault(name(path.stem.lower()), []).append(path)
    return named


def _words(name: str) -> frozenset[str]:
    """Return the words of a name; DIV2K_train_LR has three."""
    return frozenset(_SPLIT.split(name.lower()))


def _bare(stem: str) -> str:
    """Return a name without the words that say what the image is.

    >>> _bare("norain-001"), _bare("0001_NOISY_SRGB_010"), _bare("0801x4")
    ('001', '0001_srgb_010', '0801')
    """
    words = [word for word in _SPLIT.split(stem.lower()) if word not in _ROLES]
    return _SCALED.sub("", "_".join(words))

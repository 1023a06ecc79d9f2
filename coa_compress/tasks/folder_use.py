"""A network on a folder of photographs: read all, then write all."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from coa_compress.errors import DataError
from coa_compress.protocols import Progress
from coa_compress.tasks.images import list_images, read_levels, to_float, write_image
from coa_compress.tasks.tiling import restore_image


def restore_folder(
    model: nn.Module, source: Path, out: Path, progress: Progress, *, tile: int, gray: bool = False
) -> list[Path]:
    """Restore every image directly in a folder and write each as PNG of the same name.

    Everything is checked before anything is written: nothing that exists is overwritten, and one
    unreadable image stops the whole.

    Args:
        model: A network from images to images.
        source: Folder of images.
        out: Folder to write to, made when missing, not the source.
        progress: Told after each image.
        tile: Images of more than ``tile * tile`` pixels are restored in tiles.
        gray: Give the network gray images.

    Returns:
        The files written, in the order of their names.

    Raises:
        DataError: If there are no images, one cannot be read, or a file is in the way.
    """
    images = list_images(source)
    if not images:
        message = f"no images in {source}: give a folder with PNG or JPEG files in it"
        raise DataError(message)
    targets = _targets(images, source, out)
    for image in images:
        read_levels(image)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the folder {out}: {error.strerror}: choose another --out"
        raise DataError(message) from None
    for done, (image, target) in enumerate(zip(images, targets, strict=True), start=1):
        given = to_float(read_levels(image, gray=gray))
        write_image(restore_image(model, given, tile=tile), target)
        progress(done, len(images), {})
    return targets


def _targets(images: Sequence[Path], source: Path, out: Path) -> list[Path]:
    if out.resolve() == source.resolve():
        message = f"source and out are both {out}: choose another --out"
        raise DataError(message)
    if out.exists() and not out.is_dir():
        message = f"{out} is a file: choose a folder as --out"
        raise DataError(message)
    targets: dict[Path, Path] = {}
    for image in images:
        target = out / f"{image.stem}.png"
        if target in targets:
            message = f"{targets[target]} and {image} would both become {target}: rename one"
            raise DataError(message)
        if target.exists():
            message = f"{target} exists and would be overwritten: choose another --out"
            raise DataError(message)
        targets[target] = image
    return list(targets)

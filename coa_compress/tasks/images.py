"""Image files to tensors and back, with one clear error for every file that cannot be used."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from coa_compress.atomic import write_atomic
from coa_compress.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
"""File name endings, in lower case, that count as images."""

Levels = NDArray[np.uint8] | NDArray[np.float32]
"""Pixels, shape ``(height, width, channels)``."""

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
_JPEG_QUALITY = 95
_END_MARKS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_TAIL = 4096
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_LUMINANCE = (0.299, 0.587, 0.114)
_SIDEWAYS = frozenset({5, 6, 7, 8})


def list_images(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, sorted by name; hidden files are skipped.

    Raises:
        DataError: If there is no such folder.
    """
    if not folder.is_dir():
        message = f"no folder {folder}: give an existing folder of images"
        raise DataError(message)
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def read_levels(path: Path, *, gray: bool = False) -> Tensor:
    """Return the image in a file, upright, compact enough to be kept in memory.

    The alpha channel is dropped, a palette is resolved, a gray image is repeated; of an
    animation the first frame is taken.

    Args:
        path: A PNG, JPEG, BMP, WebP or TIFF file.
        gray: Return one channel instead of three.

    Returns:
        Shape ``(3, height, width)``, or ``(1, height, width)`` for ``gray``: uint8, or float32 in
        ``[0, 1]`` when the file holds more than 8 bits.

    Raises:
        DataError: If the file is missing, empty, cut off or no image.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        values = _values(upright, path)
    if gray:
        values = _gray(values)
    elif values.shape[2] == 1:
        values = values.repeat(3, axis=2)
    return torch.from_numpy(np.array(values.transpose(2, 0, 1), order="C"))


def read_image(path: Path) -> Tensor:
    """Return the image in a file as float32 in ``[0, 1]``, shape ``(3, height, width)``.

    Raises:
        DataError: If the file is missing, empty, cut off or no image.
    """
    return to_float(read_levels(path))


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width of an upright image, from the header of the file.

    A PNG or JPEG without its end mark is decoded, so that a file that was cut off is found at once.

    Raises:
        DataError: If the header cannot be read, or the file is cut off.
    """
    with _opened(path) as image:
        if not _ends_well(path, image.format):
            image.load()
        width, height = image.size
        sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    return (width, height) if sideways else (height, width)


def write_image(image: Tensor, path: Path) -> None:
    """Write an image as PNG or JPEG, by the suffix; the file is complete or not there at all.

    Args:
        image: Shape ``(3, height, width)``, or ``(1, height, width)`` for a gray one: uint8, or
            floating point, clamped to ``[0, 1]``.
        path: Where to; its folder is made when absent, an existing file is replaced.

    Raises:
        DataError: If the suffix is not ``.png``, ``.jpg`` or ``.jpeg``, or nothing can be written.
    """
    image_format = _FORMATS.get(path.suffix.lower())
    if image_format is None:
        message = f"cannot write {path}: choose a name that ends in {', '.join(sorted(_FORMATS))}"
        raise DataError(message)
    levels = to_levels(image).permute(1, 2, 0).squeeze(2).contiguous().cpu().numpy()
    encoded = io.BytesIO()
    try:
        Image.fromarray(levels).save(encoded, format=image_format, quality=_JPEG_QUALITY)
        write_atomic(path, encoded.getvalue())
    except OSError as error:
        message = f"cannot write {path}: {error.strerror or error}: choose a folder with room"
        raise DataError(message) from None


def to_levels(image: Tensor) -> Tensor:
    """Return an image in 256 levels, uint8; uint8 is returned as it is.

    >>> to_levels(torch.tensor([-0.1, 0.5, 2.0]))
    tensor([  0, 128, 255], dtype=torch.uint8)
    """
    if image.dtype == torch.uint8:
        return image
    return image.detach().clamp(0, 1).mul(255).round().to(torch.uint8)


def to_float(levels: Tensor) -> Tensor:
    """Return an image as float32 in ``[0, 1]``; floating point is returned as it is.

    >>> to_float(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([0., 1.])
    """
    return levels.float() / 255 if levels.dtype == torch.uint8 else levels


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    if not path.is_file():
        message = f"no image {path}: give an existing file"
        raise DataError(message)
    if path.stat().st_size == 0:
        message = f"cannot read image {path}: the file is empty: replace or remove it"
        raise DataError(message)
    try:
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except _DECODING_ERRORS as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else _line(error)
        message = f"cannot read image {path}: {reason}: replace or remove it"
        raise DataError(message) from None


def _ends_well(path: Path, image_format: str | None) -> bool:
    mark = _END_MARKS.get(image_format or "")
    if mark is None:
        return True
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return mark in file.read()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _values(image: Image.Image, path: Path) -> Levels:
    if image.mode.startswith("I"):
        return (np.asarray(image).astype(np.float32) / 65535)[..., None].clip(0, 1)
    if image.mode == "F":
        values = np.asarray(image, dtype=np.float32)[..., None]
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            message = f"cannot read image {path}: values outside 0 to 1: save it with 8 or 16 bits"
            raise DataError(message)
        return values
    if image.mode in {"L", "1"}:
        return np.asarray(image.convert("L"))[..., None]
    if image.mode != "RGB":
        # a palette with transparency converts without a warning only through RGBA
        image = image.convert("RGBA") if "transparency" in image.info else image
        image = image.convert("RGB")
    return np.asarray(image)


def _gray(values: Levels) -> Levels:
    if values.shape[2] == 1:
        return values
    mixed = values.astype(np.float32) @ np.array(_LUMINANCE, dtype=np.float32)
    if values.dtype == np.uint8:
        return np.round(mixed).astype(np.uint8)[..., None]
    return mixed[..., None]

"""Rows of pictures for the report."""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional

from coa_compress.artifacts import Picture
from coa_compress.tasks.images import to_levels
from coa_compress.tasks.measures import capped_psnr_db

_WIDEST = 384
_RGB = 3


def picture_row(
    title: str,
    images: Mapping[str, Tensor],
    truth: Tensor | None = None,
    *,
    psnr_db: Callable[[Tensor, Tensor], float] = capped_psnr_db,
) -> Picture:
    """Return images side by side, at most 384 pixels wide, with their PSNR where there is a truth.

    Args:
        title: What is shown.
        images: By column name, in order, shape ``(1 or 3, height, width)``, values in ``[0, 1]``;
            smaller ones are enlarged to the truth, or else to the largest.
        truth: What they should be; the last column.
        psnr_db: Of an image and its truth.
    """
    columns = dict(images) if truth is None else {**images, "truth": truth}
    largest = max(columns.values(), key=lambda image: image.shape[-1])
    even = {name: _enlarged(image, like=largest) for name, image in columns.items()}
    captions: dict[str, str] = {}
    if truth is not None:
        captions = {name: f"{psnr_db(even[name], truth):.1f} dB" for name in images}
    return Picture(title, {name: _shown(image) for name, image in even.items()}, captions)


def _enlarged(image: Tensor, *, like: Tensor) -> Tensor:
    if image.shape[-2:] == like.shape[-2:]:
        return image
    size = tuple(like.shape[-2:])
    return functional.interpolate(image[None], size, mode="bicubic")[0].clamp(0, 1)


def _shown(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    if width > _WIDEST:
        size = (max(1, round(height * _WIDEST / width)), _WIDEST)
        image = functional.interpolate(image[None], size, mode="area")[0]
    image = image if image.shape[0] == _RGB else image.expand(_RGB, -1, -1)
    return to_levels(image).permute(1, 2, 0).contiguous()

"""Rows of pictures for the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from coa_compress.artifacts import Picture
from coa_compress.tasks.dehazing.data import DehazingData, spaced
from coa_compress.tasks.dehazing.judging import Judge, capped_psnr_db
from coa_compress.tasks.dehazing.sources import PhotographSource
from coa_compress.tasks.images import to_float, to_levels

_WIDEST = 384
_PER_SPLIT = 2
_MOST_WITH_TRUTH = 6


def show_models(models: Mapping[str, nn.Module], data: DehazingData, *, tile: int) -> list[Picture]:
    """Return two rows of real images, then two rows of each test split, at most six.

    Args:
        models: Networks by column name, in order.
        data: Where the images come from.
        tile: Images of more than ``tile * tile`` pixels are restored in tiles.
    """
    judges = {name: Judge(model, tile) for name, model in models.items()}
    real = data.test_real
    rows = [
        _row(f"real: {real.title(number)}", judges, to_float(real.load(number)), None)
        for number in _chosen(real)
    ]
    shown = [
        (split, example)
        for split, examples in data.test.items()
        for example in spaced(examples, _PER_SPLIT)
    ]
    for split, example in shown[:_MOST_WITH_TRUTH]:
        rows.append(_row(f"{split}: {example.name}", judges, *example.load()))
    return rows


def _chosen(real: PhotographSource) -> Sequence[int]:
    """Return the numbers of two images: the first ones of those built in, which are photographs."""
    numbers = range(len(real.images))
    on_disk = any(isinstance(image, Path) for image in real.images)
    return spaced(numbers, _PER_SPLIT) if on_disk else numbers[:_PER_SPLIT]


def _row(title: str, judges: Mapping[str, Judge], hazy: Tensor, clear: Tensor | None) -> Picture:
    images = {"hazy": hazy} | {name: judge.restore(hazy) for name, judge in judges.items()}
    captions: dict[str, str] = {}
    if clear is not None:
        captions = {n: f"{capped_psnr_db(image, clear):.1f} dB" for n, image in images.items()}
        images["truth"] = clear
    return Picture(title, {name: _shown(image) for name, image in images.items()}, captions)


def _shown(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    if width > _WIDEST:
        size: Sequence[int] = (max(1, round(height * _WIDEST / width)), _WIDEST)
        image = functional.interpolate(image[None], tuple(size), mode="area")[0]
    return to_levels(image).permute(1, 2, 0).contiguous()

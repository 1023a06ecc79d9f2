"""Rows of pictures for the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from coa_compress.artifacts import Picture
from coa_compress.tasks.dehazing.data import DehazingData
from coa_compress.tasks.dehazing.judging import Judge
from coa_compress.tasks.dehazing.sources import PhotographSource
from coa_compress.tasks.folders import spaced
from coa_compress.tasks.images import to_float
from coa_compress.tasks.pictures import picture_row

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
    restored = {name: judge.restore(hazy) for name, judge in judges.items()}
    return picture_row(title, {"hazy": hazy, **restored}, clear)

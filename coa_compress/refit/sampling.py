"""Which positions of which examples are looked at, and which of them judge."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from coa_compress.artifacts import Batch
from coa_compress.refit.operators import Size

_FEWEST_TO_DIVIDE = 5


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What one call should return at some positions of one batch.

    Args:
        places: Numbers of the positions, counted along ``size``.
        size: Shape of the whole output without its channels.
        held: True at positions that judge a fit and are not used in it.
        values: The outputs, shape ``(n_places, channels)``.
    """

    places: Tensor
    size: Size
    held: Tensor
    values: Tensor

    def blocks(self, count: int) -> Iterator["Sample"]:
        """Yield the sample in parts of at most that many positions."""
        parts = (torch.split(part, count) for part in (self.places, self.held, self.values))
        for places, held, values in zip(*parts, strict=True):
            yield Sample(places, self.size, held, values)


@dataclass(frozen=True, slots=True, eq=False)
class Portion:
    """A calibration batch and its part in the whole.

    The last fifth of all examples judges fits. Where there are fewer than five examples, a fifth
    of the positions does.

    Args:
        batch: The examples.
        share: Which part of all examples it holds.
        n_fitting: How many of its examples, from the first, are fitted to; None when the
            examples are too few to be divided.
    """

    batch: Batch
    share: float
    n_fitting: int | None

    def places(self, size: Size, positions: int, generator: torch.Generator) -> Tensor:
        """Return distinct random positions, sorted.

        Args:
            size: Shape of an output without its channels.
            positions: How many there should be over all batches.
            generator: Source of the positions.
        """
        count = max(1, int(positions * self.share))
        picked = torch.randperm(math.prod(size), generator=generator)[:count]
        return picked.sort().values.to(self.batch.input.device)

    def held(self, places: Tensor, size: Size) -> Tensor:
        """Return which positions judge; examples vary slowest among positions."""
        if self.n_fitting is None:
            return torch.arange(len(places), device=places.device) % 5 == 0
        return places * len(self.batch.input) // math.prod(size) >= self.n_fitting

    def fitting_part(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor that belongs to the examples that are fitted to."""
        if self.n_fitting is None:
            return tensor
        return tensor[: len(tensor) * self.n_fitting // len(self.batch.input)]


def portions_of(batches: Sequence[Batch]) -> list[Portion]:
    """Return the batches with their parts in the whole.

    >>> five = [Batch(torch.zeros(3, 1)), Batch(torch.zeros(2, 1))]
    >>> [(p.share, p.n_fitting) for p in portions_of(five)]
    [(0.6, 3), (0.4, 1)]
    """
    total = sum(len(batch.input) for batch in batches)
    left = total - total // 5
    portions = []
    for batch in batches:
        n_examples = len(batch.input)
        fitting = min(n_examples, left) if total >= _FEWEST_TO_DIVIDE else None
        portions.append(Portion(batch, n_examples / total, fitting))
        left -= min(n_examples, left)
    return portions


def joined_sample(parts: Sequence[Sample], whole: Size) -> Sample | None:
    """Return the samples of batches as one of the joint batch.

    Args:
        parts: One sample a batch.
        whole: Shape of the output on the joint batch without its channels.

    Returns:
        The joint sample. None where the outputs on the batches neither lie one after another in
        that on the joint batch, nor are the same for every batch.
    """
    starts = _starts([part.size for part in parts], whole)
    if starts is None:
        return None
    return Sample(
        torch.cat([part.places + start for part, start in zip(parts, starts, strict=True)]),
        whole,
        torch.cat([part.held for part in parts]),
        torch.cat([part.values for part in parts]),
    )


def _starts(sizes: Sequence[Size], whole: Size) -> list[int] | None:
    """Return the number of the first position of each batch in the joint batch.

    >>> _starts([(2, 8), (1, 8)], (3, 8)), _starts([(5, 5), (5, 5)], (5, 5))
    ([0, 16], [0, 0])
    >>> _starts([(8, 2), (8, 1)], (8, 3))
    """
    if all(size == whole for size in sizes):
        return [0] * len(sizes)
    if any(size[1:] != whole[1:] for size in sizes) or sum(s[0] for s in sizes) != whole[0]:
        return None
    each = math.prod(whole[1:])
    return [before * each for before in accumulate((s[0] for s in sizes[:-1]), initial=0)]


def joined_portion(portions: Sequence[Portion]) -> Portion:
    """Return all batches as one."""
    fitting = [portion.n_fitting for portion in portions]
    return Portion(
        batch=Batch(torch.cat([portion.batch.input for portion in portions])),
        share=1.0,
        n_fitting=None if None in fitting else sum(n for n in fitting if n is not None),
    )

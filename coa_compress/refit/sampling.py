"""Which positions of which examples are looked at, and which of them judge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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

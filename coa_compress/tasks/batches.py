"""Batches that are always the same."""

from collections.abc import Callable

import torch

from coa_compress.artifacts import Batch

_SIZE = 4


def fixed_batches(
    draw: Callable[[int, torch.Generator], Batch], count: int, *, seed: int
) -> tuple[Batch, ...]:
    """Return so many examples in batches of at most four.

    Args:
        draw: Returns a random batch of a size.
        count: How many examples in all.
        seed: Decides what is drawn.

    >>> draw = lambda size, generator: Batch(torch.rand(size, 3, generator=generator))
    >>> [len(batch.input) for batch in fixed_batches(draw, 5, seed=0)]
    [4, 1]
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(_SIZE, count - start) for start in range(0, count, _SIZE)]
    return tuple(draw(size, generator) for size in sizes)

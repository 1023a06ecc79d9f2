"""Smooth random fields for textures, clouds and drifting haze."""

import torch
from torch import Tensor
from torch.nn import functional


def fractal_noise(
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    cells: int = 4,
    octaves: int = 4,
    persistence: float = 0.5,
) -> Tensor:
    """Return noise of several scales, each twice as fine and weaker by ``persistence``.

    Args:
        size: Height and width.
        generator: The only source of randomness.
        cells: Random values along the shorter side at the coarsest scale.
        octaves: How many scales.
        persistence: Weight of a scale relative to the coarser one.

    Returns:
        Shape ``size``, mean 0, standard deviation 1.

    >>> fractal_noise((8, 12), torch.Generator().manual_seed(0)).shape
    torch.Size([8, 12])
    """
    height, width = size
    step = min(height, width) / cells
    total = torch.zeros(size)
    weight = 1.0
    for _ in range(octaves):
        grid = (max(2, round(height / step)), max(2, round(width / step)))
        values = torch.randn(1, 1, *grid, generator=generator)
        raised = functional.interpolate(values, size, mode="bicubic", align_corners=True)
        total = total + weight * raised[0, 0]
        weight *= persistence
        step = max(1.0, step / 2)
    return (total - total.mean()) / total.std().clamp(min=1e-6)

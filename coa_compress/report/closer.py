"""A closer look at a row of pictures: where the networks differ most, and where they err."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.artifacts import Picture

_SHARE = 4
_SMALLEST = 24
_GAIN = 4.0
_MAP_WIDTH = 192


@dataclass(frozen=True, slots=True, eq=False)
class CloserLook:
    """Details of one row of pictures.

    Args:
        crops: The same window of each column, uint8, shape ``(side, side, 3)``.
        errors: Map of each network's distance from the reference, uint8, shape
            ``(height, width, 3)``; empty where there is no reference.
        mean_errors: Mean distance by column, in [0, 1].
        reference: Name of the column that the others are held against, or nothing.
    """

    crops: dict[str, Tensor]
    errors: dict[str, Tensor]
    mean_errors: dict[str, float]
    reference: str


def closer_look(picture: Picture, roles: Sequence[str]) -> CloserLook | None:
    """Return details of a row, or None where its images cannot be compared.

    The reference is the last column that is no network's, if it is not the first one (the input);
    else the output of the first network. The window is where the last network is farthest from
    the reference.

    Args:
        picture: A row of images.
        roles: Names of the columns that are outputs of networks, such as ``teacher``.

    >>> black, white = torch.zeros(64, 64, 3), torch.full((64, 64, 3), 255.0)
    >>> white[:32] = 0
    >>> row = Picture("x", {"teacher": black.byte(), "student": white.byte()})
    >>> look = closer_look(row, ["teacher", "student"])
    >>> look.reference, look.mean_errors, int(look.crops["student"].min())
    ('teacher', {'student': 0.5}, 255)
    """
    images = picture.images
    shapes = {tuple(image.shape) for image in images.values()}
    networks = [name for name in images if name in roles]
    if len(shapes) != 1 or not networks or min(next(iter(shapes))[:2]) < _SMALLEST:
        return None
    reference = _reference(list(images), networks)
    compared = [name for name in networks if name != reference]
    if not compared:
        return None
    distances = {name: _distance(images[name], images[reference]) for name in compared}
    top, left, side = _window(distances[compared[-1]])
    return CloserLook(
        crops={n: i[top : top + side, left : left + side].contiguous() for n, i in images.items()},
        errors={name: _heat(distance) for name, distance in distances.items()},
        mean_errors={name: float(distance.mean()) for name, distance in distances.items()},
        reference=reference,
    )


def _reference(columns: Sequence[str], networks: Sequence[str]) -> str:
    truths = [name for name in columns[1:] if name not in networks]
    return truths[-1] if truths else networks[0]


def _distance(image: Tensor, reference: Tensor) -> Tensor:
    """Return the mean distance of the channels, in [0, 1], shape ``(height, width)``."""
    return (image.float() - reference.float()).abs().mean(dim=2) / 255


def _window(distance: Tensor) -> tuple[int, int, int]:
    """Return top, left and side of the square in which the sum of distances is largest."""
    side = max(_SMALLEST, min(distance.shape) // _SHARE)
    # by quarters of a side: nobody sees the difference
    sums = functional.avg_pool2d(distance[None, None], side, stride=max(1, side // 4))[0, 0]
    row, column = divmod(int(sums.argmax()), sums.shape[1])
    step = max(1, side // 4)
    return row * step, column * step, side


def _heat(distance: Tensor) -> Tensor:
    """Return a map from black over red to white at a quarter of the range, uint8."""
    height, width = distance.shape
    if width > _MAP_WIDTH:
        size = (max(1, round(height * _MAP_WIDTH / width)), _MAP_WIDTH)
        distance = functional.interpolate(distance[None, None], size, mode="area")[0, 0]
    level = (_GAIN * distance).clamp(0, 1)
    ramps = [(3 * level - start).clamp(0, 1) for start in (0.0, 1.0, 2.0)]
    return torch.stack(ramps, dim=2).mul(255).round().to(torch.uint8)

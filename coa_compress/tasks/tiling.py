"""A network on one image of any size, in tiles when the image is large."""

import math
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from coa_compress.errors import (
    FOREIGN_ERRORS,
    CoaError,
    ModelError,
    SettingError,
    first_line,
    is_out_of_memory,
)
from coa_compress.profiling.modes import evaluating
from coa_compress.profiling.profile import free_memory

_STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
_PROBE = 128
_IMAGE_NDIM = 4
_LEAST_TILE = 128
"""Smallest side of tiles that are made smaller because memory runs out."""


class Sizes(NamedTuple):
    """What a network does with the size of an image.

    Args:
        step: Of what height and width must be a multiple, a power of two up to 128.
        scale: How many times higher and wider its output is.
        square: Whether height and width must be the same.
    """

    step: int
    scale: int
    square: bool = False

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width of the smallest input that has room for an image.

        >>> Sizes(8, 1).padded(20, 33), Sizes(8, 1, square=True).padded(20, 33)
        ((24, 40), (40, 40))
        """
        sides = (max(height, width),) * 2 if self.square else (height, width)
        high, wide = (-(-side // self.step) * self.step for side in sides)
        return high, wide


_FOUND: WeakKeyDictionary[nn.Module, Sizes] = WeakKeyDictionary()


def sizes_of(model: nn.Module, *, channels: int = 3) -> Sizes:
    """Return what sizes a network takes and makes; found by running it, once.

    Args:
        model: A network from images to images.
        channels: Channels of its input.

    Returns:
        ``Sizes(1, 1)`` where the output is no whole multiple of the input at all.

    >>> sizes_of(nn.Conv2d(3, 3, 3, padding=1))
    Sizes(step=1, scale=1, square=False)
    >>> sizes_of(nn.Sequential(nn.PixelUnshuffle(4), nn.PixelShuffle(4)))
    Sizes(step=4, scale=1, square=False)
    >>> sizes_of(nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2)))
    Sizes(step=1, scale=2, square=False)
    """
    if model not in _FOUND:
        tries = (
            Sizes(step, _scale_at(model, channels, _PROBE + step, square=square), square)
            for square in (False, True)
            for step in _STEPS
        )
        _FOUND[model] = next((sizes for sizes in tries if sizes.scale), Sizes(1, 1))
    return _FOUND[model]


def _scale_at(model: nn.Module, channels: int, height: int, *, square: bool) -> int:
    """Return how many times larger the output of an image is, 0 for no whole multiple."""
    width = height if square else 2 * height - _PROBE
    output = tried(model, torch.full((1, channels, height, width), 0.5))
    if not isinstance(output, Tensor) or output.ndim != _IMAGE_NDIM:
        return 0
    scale, rest = divmod(output.shape[-2], height)
    return scale if not rest and output.shape[-1] == scale * width else 0


def suited(image: Tensor, model: nn.Module) -> Tensor:
    """Return an image on the device, and in the type of numbers, of a network's parameters.

    >>> suited(torch.zeros(1), nn.Linear(1, 1).double()).dtype
    torch.float64
    """
    own = list(model.parameters())
    return image.to(next((p for p in own if p.is_floating_point()), (*own, image)[0].real))


def tried(model: nn.Module, image: Tensor) -> Any:
    """Return what a network makes of an input, in evaluation mode, or None if it cannot take it.

    >>> tried(nn.Conv2d(4, 4, 1), torch.rand(1, 3, 8, 8)) is None
    True
    """
    with evaluating(model), torch.no_grad():
        try:
            return model(suited(image, model))
        except FOREIGN_ERRORS:
            return None


def restore_image(
    model: nn.Module, image: Tensor, *, tile: int = 1024, overlap: int = 64
) -> Tensor:
    """Return what a network makes of an image, clamped to ``[0, 1]``, on the CPU.

    An image of at most ``tile * tile`` pixels is given whole; a larger one in overlapping tiles
    that are blended linearly. Where memory runs out, tiles of half the side are tried, down to 128.
    What the network is given is padded at the right and the bottom, by repeating the edge, to what
    ``sizes_of`` says. The network runs in evaluation mode on its own device.

    Args:
        model: A network from images to images of the same size, or of a whole multiple of it.
        image: Shape ``(channels, height, width)``, values in ``[0, 1]``.
        tile: Largest side of a tile in pixels.
        overlap: How far tiles overlap in pixels, below ``tile``.

    Returns:
        Float32, shape ``(channels of the output, scale * height, scale * width)``.

    Raises:
        SettingError: If the overlap is not in ``[0, tile)``.
        ModelError: If the network cannot take such an image, or returns something else.

    >>> restore_image(nn.Identity(), torch.ones(3, 5, 7), tile=4, overlap=2).shape
    torch.Size([3, 5, 7])
    >>> restore_image(nn.Upsample(scale_factor=2), torch.ones(3, 5, 7), tile=4, overlap=2).shape
    torch.Size([3, 10, 14])
    """
    if not 0 <= overlap < tile:
        message = f"overlap must be at least 0 and below the tile of {tile}, got {overlap}"
        raise SettingError(message)
    sizes = sizes_of(model, channels=image.shape[0])
    with evaluating(model), torch.no_grad():
        while True:
            try:
                return _in_tiles(model, image, sizes, tile=tile, overlap=overlap)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or tile // 2 < max(_LEAST_TILE, overlap + 1):
                    raise
            # outside of the handler: until its end the error keeps the tensors alive
            free_memory(next((p.device for p in model.parameters()), image.device))
            tile //= 2


def _in_tiles(model: nn.Module, image: Tensor, sizes: Sizes, *, tile: int, overlap: int) -> Tensor:
    height, width = image.shape[-2:]
    scale = sizes.scale
    if math.prod(sizes.padded(height, width)) <= math.prod(sizes.padded(tile, tile)):
        return _run(model, image, sizes)
    total, weight = torch.zeros(()), torch.zeros(scale * height, scale * width)
    for top, bottom in spans(height, tile=tile, overlap=overlap):
        for left, right in spans(width, tile=tile, overlap=overlap):
            part = _run(model, image[:, top:bottom, left:right], sizes)
            blend = torch.outer(*(_ramp(n, scale * overlap) for n in part.shape[-2:]))
            rows = slice(scale * top, scale * bottom)
            columns = slice(scale * left, scale * right)
            total = total if total.ndim else torch.zeros(len(part), *weight.shape)
            total[:, rows, columns] += part * blend
            weight[rows, columns] += blend
    return (total / weight).clamp(0, 1)


def spans(length: int, *, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Return start and end of tiles that cover a length, evenly, all of the same size.

    >>> spans(10, tile=4, overlap=1)
    [(0, 4), (3, 7), (6, 10)]
    >>> spans(3, tile=4, overlap=1)
    [(0, 3)]
    """
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    last = length - tile
    return [(start, start + tile) for start in (last * i // (count - 1) for i in range(count))]


def _run(model: nn.Module, image: Tensor, sizes: Sizes) -> Tensor:
    height, width = image.shape[-2:]
    high, wide = sizes.padded(height, width)
    padding = (0, wide - width, 0, high - height)
    padded = functional.pad(image[None], padding, mode="replicate") if any(padding) else image[None]
    try:
        output = model(suited(padded, model))
    except CoaError:
        raise
    except FOREIGN_ERRORS as error:
        if is_out_of_memory(error):
            raise
        message = f"{type(model).__name__} cannot take an image of {tuple(padded.shape[1:])} "
        message += f"({first_line(error)}): give a network that takes images of any size"
        raise ModelError(message) from error
    wanted = tuple(sizes.scale * side for side in padded.shape[-2:])
    if not isinstance(output, Tensor) or output.ndim != _IMAGE_NDIM or output.shape[-2:] != wanted:
        found = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
        message = (
            f"{type(model).__name__} makes {found} of an image of {tuple(padded.shape[1:])}: "
            "give a network that keeps the size, or multiplies it by a whole number"
        )
        raise ModelError(message)
    kept = output[0, :, : sizes.scale * height, : sizes.scale * width]
    return kept.float().cpu().clamp(0, 1)


def _ramp(length: int, overlap: int) -> Tensor:
    rise = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(rise, rise.flip(0)).clamp(max=overlap + 1)

"""A network on one image of any size, in tiles when the image is large."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from coa_compress.errors import FOREIGN_ERRORS, ModelError, SettingError
from coa_compress.profiling.modes import evaluating

_STEPS = (1, 2, 4, 8, 16, 32, 64)
_PROBE = 128
_FOUND: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def size_step(model: nn.Module, *, channels: int = 3) -> int:
    """Return of what height and width must be a multiple for a network, a power of two up to 64.

    It is found by running the network, once; 1 where it keeps no size at all.

    Args:
        model: A network from images to images of the same size.
        channels: Channels of its input.

    >>> size_step(nn.Conv2d(3, 3, 3, padding=1))
    1
    >>> size_step(nn.Sequential(nn.PixelUnshuffle(4), nn.PixelShuffle(4)))
    4
    """
    if model not in _FOUND:
        takes = (step for step in _STEPS if _keeps(model, channels, _PROBE + step))
        _FOUND[model] = next(takes, 1)
    return _FOUND[model]


def _keeps(model: nn.Module, channels: int, side: int) -> bool:
    image = torch.full((1, channels, side, side), 0.5)
    output = tried(model, image)
    return isinstance(output, Tensor) and output.shape == image.shape


def tried(model: nn.Module, image: Tensor) -> Any:
    """Return what a network makes of an input, in evaluation mode, or None if it cannot take it.

    >>> tried(nn.Conv2d(4, 4, 1), torch.rand(1, 3, 8, 8)) is None
    True
    """
    with evaluating(model), torch.no_grad():
        try:
            return model(image.to(next(model.parameters(), image)))
        except FOREIGN_ERRORS:
            return None


def restore_image(
    model: nn.Module, image: Tensor, *, tile: int = 1024, overlap: int = 64
) -> Tensor:
    """Return what a network makes of an image, clamped to ``[0, 1]``, on the CPU.

    An image of at most ``tile * tile`` pixels is given whole; a larger one in overlapping tiles
    that are blended linearly. What the network is given is padded at the right and the bottom, by
    repeating the edge, to a multiple of ``size_step``. The network runs in evaluation mode on its
    own device.

    Args:
        model: A network from images to images of the same size.
        image: Shape ``(3, height, width)``, values in ``[0, 1]``.
        tile: Largest side of a tile in pixels.
        overlap: How far tiles overlap in pixels, below ``tile``.

    Returns:
        Same shape as the image, float32.

    Raises:
        SettingError: If the overlap is not in ``[0, tile)``.
        ModelError: If the network returns something of another shape.

    >>> restore_image(nn.Identity(), torch.ones(3, 5, 7), tile=4, overlap=2).shape
    torch.Size([3, 5, 7])
    """
    if not 0 <= overlap < tile:
        message = f"overlap must be at least 0 and below the tile of {tile}, got {overlap}"
        raise SettingError(message)
    height, width = image.shape[-2:]
    step = size_step(model, channels=image.shape[0])
    with evaluating(model), torch.no_grad():
        if height * width <= tile * tile:
            return _run(model, image, step)
        total = torch.zeros(image.shape)
        weight = torch.zeros(height, width)
        for top, bottom in spans(height, tile=tile, overlap=overlap):
            for left, right in spans(width, tile=tile, overlap=overlap):
                blend = torch.outer(_ramp(bottom - top, overlap), _ramp(right - left, overlap))
                part = _run(model, image[:, top:bottom, left:right], step)
                total[:, top:bottom, left:right] += part * blend
                weight[top:bottom, left:right] += blend
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


def _run(model: nn.Module, image: Tensor, step: int) -> Tensor:
    height, width = image.shape[-2:]
    padding = (0, -width % step, 0, -height % step)
    padded = functional.pad(image[None], padding, mode="replicate") if any(padding) else image[None]
    output = model(padded.to(next(model.parameters(), image)))
    if not isinstance(output, Tensor) or output.shape != padded.shape:
        found = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
        message = (
            f"{type(model).__name__} makes {found} of an image of {tuple(padded.shape[1:])}: "
            "give a network that keeps the size"
        )
        raise ModelError(message)
    return output[0, :, :height, :width].float().cpu().clamp(0, 1)


def _ramp(length: int, overlap: int) -> Tensor:
    rise = torch.arange(1, length + 1, dtype=torch.float32)
    return torch.minimum(rise, rise.flip(0)).clamp(max=overlap + 1)

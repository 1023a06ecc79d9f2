"""Random crops of several scales, turned and mirrored, for training."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.dice import Dice
from coa_compress.tasks.images import to_float

_GAMMA = (0.7, 1.4)
_EXPOSURE = (0.8, 1.1)
# seldom: the ground is below, far things are above, and a network may use that
_TURNED = 0.25


@dataclass(frozen=True, slots=True)
class Window:
    """A square part of an image and how it is turned.

    Args:
        top: First row, as a fraction of the height.
        left: First column, as a fraction of the width.
        side: Side in pixels of the reference image.
        turns: Quarter turns.
        flip: Whether it is mirrored.
    """

    top: float
    left: float
    side: int
    turns: int
    flip: bool


def random_window(size: tuple[int, int], crop: int, dice: Dice, *, max_zoom: float = 3.0) -> Window:
    """Return a window whose side is ``crop`` to ``max_zoom * crop``, log-uniform, where it fits.

    Args:
        size: Height and width of the reference image.
        crop: Side the window will be resized to.
        dice: Source of randomness.
        max_zoom: Largest side over ``crop``.
    """
    zoom = math.exp(dice.uniform(0.0, math.log(max_zoom)))
    side = min(round(crop * zoom), *size)
    top, left = (dice.integer(0, length - side) / length for length in size)
    turns = dice.integer(1, 3) if dice.chance(_TURNED) else 0
    return Window(top, left, side, turns, dice.chance(0.5))


def cut_window(image: Tensor, window: Window, crop: int, *, size: tuple[int, int]) -> Tensor:
    """Return the part of an image in a window, resized by area.

    Args:
        image: uint8 or float, shape ``(channels, height, width)``; maybe another resolution of the
            reference image, such as a depth map at half size.
        window: The part.
        crop: Side of the result in pixels.
        size: Height and width of the reference image.

    Returns:
        Float32, shape ``(channels, crop, crop)``; uint8 levels become ``[0, 1]``.
    """
    height, width = image.shape[-2:]
    rows = max(1, round(window.side * height / size[0]))
    columns = max(1, round(window.side * width / size[1]))
    top = min(round(window.top * height), height - rows)
    left = min(round(window.left * width), width - columns)
    part = to_float(image[:, top : top + rows, left : left + columns]).float()
    part = _resized(part, crop)
    part = torch.rot90(part, window.turns, dims=(1, 2))
    return part.flip(2) if window.flip else part


def random_exposure(clear: Tensor, dice: Dice) -> Tensor:
    """Return the image with random gamma and exposure, values in ``[0, 1]``."""
    gamma = math.exp(dice.uniform(math.log(_GAMMA[0]), math.log(_GAMMA[1])))
    return (clear.clamp(0, 1) ** gamma * dice.uniform(*_EXPOSURE)).clamp(0, 1)


def _resized(part: Tensor, crop: int) -> Tensor:
    if part.shape[1:] == (crop, crop):
        return part
    if min(part.shape[1:]) >= crop:
        return functional.interpolate(part[None], (crop, crop), mode="area")[0]
    size = (crop, crop)
    return functional.interpolate(part[None], size, mode="bilinear", align_corners=False)[0]

"""What may be wrong with the built-in images, for networks of which nobody said what they do."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.camera import random_jpeg
from coa_compress.tasks.dice import Dice

_NOISE = (2 / 255, 50 / 255)
_BLUR = (0.5, 2.5)
_GAMMA = (1.5, 3.5)
_REACH = 3.0


def noisy(image: Tensor, dice: Dice) -> Tensor:
    """Return an image with Gaussian noise of 2 to 50 levels, mostly little."""
    low, high = map(math.log, _NOISE)
    deviation = math.exp(dice.uniform(low, high))
    grain = torch.randn(image.shape, generator=dice.generator)
    return (image + deviation * grain).clamp(0, 1)


def blurred(image: Tensor, dice: Dice) -> Tensor:
    """Return an image under a Gaussian blur of 0.5 to 2.5 pixels."""
    deviation = dice.uniform(*_BLUR)
    reach = math.ceil(_REACH * deviation)
    steps = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (steps / deviation) ** 2)
    kernel = kernel / kernel.sum()
    wide = functional.pad(image[None], (reach, reach, reach, reach), mode="replicate")[0]
    lines = functional.conv2d(wide[:, None], kernel[None, None, None, :])
    return functional.conv2d(lines, kernel[None, None, :, None])[:, 0].clamp(0, 1)


def dark(image: Tensor, dice: Dice) -> Tensor:
    """Return an image of low light: a gamma of 1.5 to 3.5."""
    return image.clamp(0, 1) ** dice.uniform(*_GAMMA)


DEGRADATIONS: Mapping[str, Callable[[Tensor, Dice], Tensor]] = MappingProxyType(
    {"noise": noisy, "blur": blurred, "dark": dark, "jpeg": random_jpeg}
)
"""From clear images to others of the same shape, ``(channels, height, width)`` in ``[0, 1]``."""

WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"none": 0.25, "haze": 0.25, "noise": 0.2, "blur": 0.1, "dark": 0.1, "jpeg": 0.1}
)
"""How often each is drawn; ``haze`` is made with the depth of the image."""


def degraded(hazy: Tensor, clear: Tensor, dice: Dice) -> Tensor:
    """Return a built-in image as it is, under haze, or with another defect.

    Args:
        hazy: Shape ``(3, height, width)``, values in ``[0, 1]``.
        clear: The same view without haze.
        dice: The only source of randomness.
    """
    kind = tuple(WEIGHTS)[dice.weighted(tuple(WEIGHTS.values()))]
    if kind == "haze":
        return hazy
    return DEGRADATIONS[kind](clear, dice) if kind in DEGRADATIONS else clear

"""What a camera does to an image: tone curve, sensor noise, JPEG."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from coa_compress.tasks.dice import Dice

_GAMMA = (1.6, 2.4)
_SHOT_NOISE = (0.0, 0.0015)
_READ_NOISE = (0.001, 0.012)
_QUALITY = (55, 95)


def in_linear_light(image: Tensor, process: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """Return what a process of light makes of an image that a camera encoded with a gamma.

    Light adds up before the tone curve of a camera, not behind it: scattering that is computed on
    encoded values is a little too dark (Narasimhan and Nayar 2002, section 2).

    Args:
        image: Encoded values in ``[0, 1]``, any shape.
        process: From linear light to linear light, values in ``[0, 1]``.
        gamma: Exponent of the decoding, above 0; 1 changes nothing.

    Returns:
        What the process returned, encoded again.

    >>> in_linear_light(torch.tensor([0.25]), lambda light: 4 * light, 2.0)
    tensor([0.5000])
    """
    return process(image.clamp(0, 1) ** gamma).clamp(0, 1) ** (1 / gamma)


def random_gamma(dice: Dice) -> float:
    """Return the exponent of a usual tone curve, in ``[1.6, 2.4)``."""
    return dice.uniform(*_GAMMA)


def sensor_noise(image: Tensor, dice: Dice) -> Tensor:
    """Return an image with the noise of a sensor: photons are counted, and the counter is noisy.

    The variance is ``a * value + b`` (Foi et al. 2008, "Practical Poissonian-Gaussian noise
    modeling and fitting"); both are random.

    Args:
        image: Values in ``[0, 1]``, any shape.
        dice: The only source of randomness.

    Returns:
        Same shape, values in ``[0, 1]``.

    >>> sensor_noise(torch.ones(3, 2, 2), Dice(torch.Generator())).shape
    torch.Size([3, 2, 2])
    """
    shot, read = dice.uniform(*_SHOT_NOISE), dice.uniform(*_READ_NOISE)
    deviation = (shot * image.clamp(0, 1) + read**2).sqrt()
    grain = torch.randn(image.shape, generator=dice.generator)
    return (image + deviation * grain).clamp(0, 1)


def random_jpeg(image: Tensor, dice: Dice) -> Tensor:
    """Return an image after JPEG of a random quality from 55 to 95.

    Args:
        image: Float, shape ``(3, height, width)``, values in ``[0, 1]``.
        dice: The only source of randomness.

    Returns:
        Float32, same shape, in 256 levels.

    >>> random_jpeg(torch.zeros(3, 8, 8), Dice(torch.Generator())).max()
    tensor(0.)
    """
    levels = image.clamp(0, 1).mul(255).round().to(torch.uint8)
    return through_jpeg(levels, quality=dice.integer(*_QUALITY)).float() / 255


def through_jpeg(levels: Tensor, *, quality: int) -> Tensor:
    """Return an image as JPEG stores it.

    Args:
        levels: uint8, shape ``(3, height, width)``.
        quality: From 1, coarse, to 95, fine.

    Returns:
        uint8, same shape.

    >>> through_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8), quality=50).sum()
    tensor(0)
    """
    buffer = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()).save(
        buffer, format="JPEG", quality=quality
    )
    with Image.open(buffer) as image:
        decoded = np.array(image.convert("RGB"))
    return torch.from_numpy(decoded).permute(2, 0, 1).contiguous()

"""Losses of a dehazed image against its truth, or against the output of the teacher."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from coa_compress.training.image_losses import frequency_l1, l1, psnr_loss, ssim_loss

_COARSE = 8


def low_frequency_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of 8 x 8 averages: haze left over, color shifted.

    >>> import torch
    >>> low_frequency_loss(torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.5))
    tensor(0.5000)
    """
    patch = min(_COARSE, *output.shape[-2:])
    return functional.l1_loss(
        functional.avg_pool2d(output, patch), functional.avg_pool2d(target, patch)
    )


RESTORATION_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "ssim": ssim_loss,
    "psnr": psnr_loss,
    "frequency": frequency_l1,
    "low_frequency": low_frequency_loss,
}
"""Every loss by name: a scalar from 0 of outputs and targets, ``(batch, 3, height, width)``."""

"""Fidelity measures against a truth, in the convention of published tables."""

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from coa_compress.errors import DataError
from coa_compress.tasks.images import to_levels

_WINDOW = 11
_SIGMA = 1.5
_MOST_PSNR_DB = 100.0


def psnr_db(restored: Tensor, clear: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each image over all its pixels and channels.

    Args:
        restored: Shape ``(batch, channels, height, width)``.
        clear: Same shape.
        data_range: Width of the value range.

    Returns:
        Shape ``(batch,)``, in dB; ``inf`` for identical images; higher is better.

    Raises:
        DataError: If the shapes differ.

    >>> psnr_db(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1))
    tensor([20.])
    """
    _check_shapes(restored, clear)
    error = (restored - clear).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(data_range**2 / error)


def capped_psnr_db(restored: Tensor, clear: Tensor) -> float:
    """Return the PSNR of one image, at most 100 dB so that means stay finite."""
    return min(_MOST_PSNR_DB, float(psnr_db(restored[None], clear[None])))


def ssim(restored: Tensor, clear: Tensor) -> Tensor:
    """Return the structural similarity of each image (Wang et al. 2004, IEEE TIP 13(4)).

    Gaussian window of 11 pixels with a standard deviation of 1.5, inside the image, mean over the
    channels.

    Args:
        restored: Shape ``(batch, channels, height, width)``, values in ``[0, 1]``, sides from 11.
        clear: Same shape and range.

    Returns:
        Shape ``(batch,)``, at most 1; higher is better.

    Raises:
        DataError: If the shapes differ or the images are smaller than the window.

    >>> ssim(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))
    tensor([1.])
    """
    _check_shapes(restored, clear)
    if min(restored.shape[-2:]) < _WINDOW:
        message = (
            f"cannot compare images of {tuple(restored.shape[-2:])}: ssim needs 11 x 11 pixels"
        )
        raise DataError(message)
    _, similarity = structural_similarity_index_measure(
        restored,
        clear,
        gaussian_kernel=True,
        sigma=_SIGMA,
        kernel_size=_WINDOW,
        data_range=1.0,
        return_full_image=True,
    )
    # torchmetrics reflects the borders; the paper only has windows that lie inside the image
    edge = _WINDOW // 2
    inside: Tensor = similarity[..., edge:-edge, edge:-edge]
    return inside.mean(dim=(1, 2, 3))


def in_8_bits(image: Tensor) -> Tensor:
    """Return an image as it is after being stored with 8 bits, float32 in ``[0, 1]``.

    >>> in_8_bits(torch.tensor([0.0, 0.5, 1.2])) * 255
    tensor([  0., 128., 255.])
    """
    return to_levels(image).float() / 255


def _check_shapes(restored: Tensor, clear: Tensor) -> None:
    if restored.shape != clear.shape:
        message = (
            f"cannot compare shapes {tuple(restored.shape)} and {tuple(clear.shape)}: "
            "give images of the same size"
        )
        raise DataError(message)

"""Differences between two images, as losses that any task may use."""

import torch
from torch import Tensor

from coa_compress.errors import DataError

_SSIM_WINDOW = 11
_MOST_PSNR_DB = 60.0


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference.

    Args:
        output: Any shape.
        target: The same shape.

    Returns:
        A scalar from 0.

    Raises:
        DataError: If the shapes differ.

    >>> l1(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5))
    tensor(0.5000)
    """
    _check_shapes(output, target)
    return (output.float() - target.float()).abs().mean()


def charbonnier(output: Tensor, target: Tensor, *, epsilon: float = 1e-3) -> Tensor:
    """Return the mean of ``sqrt(difference**2 + epsilon**2)`` (Charbonnier et al. 1994).

    Args:
        output: Any shape.
        target: The same shape.
        epsilon: Difference below which the loss is no longer linear.

    Returns:
        A scalar from ``epsilon``.

    Raises:
        DataError: If the shapes differ.

    >>> charbonnier(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 3.0), epsilon=4.0)
    tensor(5.)
    """
    _check_shapes(output, target)
    return ((output.float() - target.float()).square() + epsilon**2).sqrt().mean()


def psnr_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return how far the PSNR of each image is from 60 dB, in units of 60 dB, on average.

    The logarithm gives an image that is almost right as much to gain as one that is far off, which
    is what a mean of PSNRs rewards (Chen et al. 2021, HINet, arXiv:2105.06086).

    Args:
        output: Shape ``(batch, channels, height, width)``, values in about [0, 1].
        target: The same shape, values in [0, 1].

    Returns:
        A scalar from 0: 0.5 where the PSNR of every image is 30 dB.

    Raises:
        DataError: If the shapes differ.

    >>> psnr_loss(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.0316)).round(decimals=2)
    tensor(0.5000)
    """
    _check_shapes(output, target)
    error = (output.float() - target.float()).square().flatten(1).mean(dim=1)
    floor = 10 ** (-_MOST_PSNR_DB / 10)
    return 10 / _MOST_PSNR_DB * torch.log10(1 + error / floor).mean()


def ssim_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return 1 - SSIM with a Gaussian window (Wang et al. 2004, doi:10.1109/TIP.2003.819861).

    The window is 11 x 11 with a standard deviation of 1.5 and lies inside the image, as in the
    paper and in scikit-image.

    Args:
        output: Shape ``(batch, channels, height, width)``, values in [0, 1]; height and width
            at least 11.
        target: The same shape and range.

    Returns:
        A scalar in [0, 2]; 0 for equal images.

    Raises:
        DataError: If the shapes differ, or the images are smaller than the window.

    >>> image = torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    >>> abs(ssim_loss(image, image).item()) < 1e-6
    True
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _check_shapes(output, target)
    if output.dim() != 4 or min(output.shape[-2:]) < _SSIM_WINDOW:
        message = (
            f"ssim needs images (batch, channels, height, width) of at least {_SSIM_WINDOW} x "
            f"{_SSIM_WINDOW}, got shape {tuple(output.shape)}: use larger crops or another loss"
        )
        raise DataError(message)
    _, similarity = structural_similarity_index_measure(
        output.float(), target.float(), sigma=1.5, data_range=1.0, return_full_image=True
    )
    # torchmetrics reflects the borders; the paper only has windows that lie inside the image
    edge = _SSIM_WINDOW // 2
    return 1.0 - similarity[..., edge:-edge, edge:-edge].mean()


def frequency_l1(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of the amplitudes of the 2-D Fourier transforms.

    The transform is orthonormal, so the loss does not grow with the size of the images; phase
    does not matter.

    Args:
        output: Shape ``(..., height, width)``.
        target: The same shape.

    Returns:
        A scalar from 0.

    Raises:
        DataError: If the shapes differ.

    >>> frequency_l1(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    tensor(0.5000)
    """
    _check_shapes(output, target)
    spectra = [torch.fft.rfft2(image.float(), norm="ortho") for image in (output, target)]
    difference: Tensor = spectra[0].abs() - spectra[1].abs()
    return difference.abs().mean()


def _check_shapes(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:
        message = f"shapes differ: {tuple(output.shape)} and {tuple(target.shape)}"
        raise DataError(message)

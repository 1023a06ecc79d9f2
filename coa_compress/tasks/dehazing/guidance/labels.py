"""Pseudo-labels of real hazy images that go further than the network that makes them."""

from torch import Tensor, nn

from coa_compress.protocols import PseudoLabel
from coa_compress.tasks.dehazing.guidance.channels import dark_channel
from coa_compress.tasks.dehazing.guidance.rehazing import smooth

_FINE, _COARSE = 9, 31
_VARIANCE = 1e-4
_FINE_GAIN, _COARSE_GAIN = 0.5, 1.0
_DARK_PATCH = 15
_DARK_WEIGHT = 0.6
_LEAST = 0.2
_BRIGHTEST = 1000


def detail_label(network: nn.Module, real: Tensor, output: Tensor) -> Tensor:
    """Return the output with more local contrast where the network took haze away.

    Haze shrinks local contrast by the transmission, and what a network leaves of haze shows as
    contrast that it did not give back. How much it gave back is told by the deviation in windows
    of 31 pixels before and after; where nothing was removed, nothing is added. The added contrast
    is that of windows of 9 and of 31 pixels, so that means and colors stay.

    Args:
        network: Dehazes; not asked again.
        real: Hazy images, shape ``(batch, 3, height, width)``, values in ``[0, 1]``.
        output: What the network made of them, same shape.

    Returns:
        Same shape, values in ``[0, 1]``.

    >>> import torch
    >>> real = torch.rand(1, 3, 32, 32)
    >>> torch.allclose(detail_label(nn.Identity(), real, real), real)
    True
    """
    del network
    output = output.clamp(0, 1)
    passed = (_deviation(real) / _deviation(output)).clamp(0, 1)
    fine, coarse = output - smooth(output, _FINE), output - smooth(output, _COARSE)
    lost = (1 - passed).sqrt()
    return (output + lost * (_FINE_GAIN * fine + _COARSE_GAIN * coarse)).clamp(0, 1)


def dark_channel_label(network: nn.Module, real: Tensor, output: Tensor) -> Tensor:
    """Return the output after a gentle step of the dark channel prior (He et al. 2011).

    Args:
        network: Dehazes; not asked again.
        real: Hazy images, shape ``(batch, 3, height, width)``.
        output: What the network made of them, same shape.

    Returns:
        Same shape, values in ``[0, 1]``.
    """
    del network, real
    output = output.clamp(0, 1)
    darkest = dark_channel(output, patch=_DARK_PATCH)
    flat = darkest.flatten(1)
    count = max(1, flat.shape[1] // _BRIGHTEST)
    places = flat.topk(count, dim=1).indices[:, None].expand(-1, output.shape[1], -1)
    light = output.flatten(2).gather(2, places).mean(dim=2)[:, :, None, None].clamp(min=_LEAST)
    veil = dark_channel((output / light).clamp(max=1), patch=_DARK_PATCH)
    passed = (1 - _DARK_WEIGHT * smooth(veil, _COARSE)).clamp(min=_LEAST)
    return (light + (output - light) / passed).clamp(0, 1)


LABELS: dict[str, PseudoLabel] = {
    "detail": detail_label,
    "dark_channel": dark_channel_label,
}
"""Every maker of pseudo-labels by name, besides those of the engine."""


def _deviation(image: Tensor) -> Tensor:
    """Return the local deviation over all channels, shape ``(batch, 1, height, width)``."""
    variance = smooth(image.square(), _COARSE) - smooth(image, _COARSE).square()
    return (variance.clamp(min=0).mean(dim=1, keepdim=True) + _VARIANCE).sqrt()

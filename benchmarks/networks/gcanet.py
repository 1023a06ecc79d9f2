"""GCANet: gated context aggregation for dehazing (Chen et al. 2019, arXiv:1811.08747)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_STRIDE = 4
_WIDTH = 64
_CENTER = 128.0
_RANGE = 255.0


class SharedSmoothing(nn.Module):
    """One spatial kernel that is applied to every channel before a dilated convolution.

    Args:
        size: Side of the kernel, odd.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, size, size))
        with torch.no_grad():
            self.weight[0, 0, size // 2, size // 2] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Return the smoothed channels, same shape."""
        channels = x.shape[1]
        kernel = self.weight.repeat(channels, 1, 1, 1)
        return functional.conv2d(x, kernel, padding="same", groups=channels)


class DilatedBlock(nn.Module):
    """Two dilated convolutions with instance norms and a shortcut.

    Args:
        width: Channels of input and output.
        dilation: Of both convolutions; above 1 each is preceded by a shared smoothing.
    """

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        if dilation > 1:
            self.pre_conv1: nn.Module = SharedSmoothing(2 * dilation - 1)
            self.pre_conv2: nn.Module = SharedSmoothing(2 * dilation - 1)
        else:
            self.pre_conv1, self.pre_conv2 = nn.Identity(), nn.Identity()
        self.conv1 = _conv(width, width, dilation=dilation)
        self.norm1 = nn.InstanceNorm2d(width, affine=True)
        self.conv2 = _conv(width, width, dilation=dilation)
        self.norm2 = nn.InstanceNorm2d(width, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, same shape."""
        inner = torch.relu(self.norm1(self.conv1(self.pre_conv1(x))))
        return torch.relu(x + self.norm2(self.conv2(self.pre_conv2(inner))))


class GCANet(nn.Module):
    """Predict what is to be added to a hazy image, from the image and its edges.

    The published network takes RGB in ``[0, 255]`` and an edge channel, less 128 each; here both
    are made of an image in ``[0, 1]`` of any size. Names of parameters are those of the published
    weight file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(4, _WIDTH)
        self.norm1 = nn.InstanceNorm2d(_WIDTH, affine=True)
        self.conv2 = _conv(_WIDTH, _WIDTH)
        self.norm2 = nn.InstanceNorm2d(_WIDTH, affine=True)
        self.conv3 = _conv(_WIDTH, _WIDTH, stride=2)
        self.norm3 = nn.InstanceNorm2d(_WIDTH, affine=True)
        for number, dilation in enumerate((2, 2, 2, 4, 4, 4, 1), start=1):
            self.add_module(f"res{number}", DilatedBlock(_WIDTH, dilation))
        self.gate = nn.Conv2d(3 * _WIDTH, 3, 3, padding=1)
        self.deconv3 = nn.ConvTranspose2d(_WIDTH, _WIDTH, 4, stride=2, padding=1)
        self.norm4 = nn.InstanceNorm2d(_WIDTH, affine=True)
        self.deconv2 = nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1)
        self.norm5 = nn.InstanceNorm2d(_WIDTH, affine=True)
        self.deconv1 = nn.Conv2d(_WIDTH, 3, 1)

    def forward(self, hazy: Tensor) -> Tensor:
        """Return the dehazed image.

        Args:
            hazy: Shape ``(batch, 3, height, width)``, values in ``[0, 1]``.

        Returns:
            Same shape; about ``[0, 1]``, unclamped.
        """
        height, width = hazy.shape[-2:]
        padding = (0, -width % _STRIDE, 0, -height % _STRIDE)
        image = functional.pad(hazy * _RANGE, padding, mode="replicate")
        residual = self._residual(torch.cat([image, edges(image)], dim=1) - _CENTER)
        return ((image + residual) / _RANGE)[:, :, :height, :width]

    def _residual(self, x: Tensor) -> Tensor:
        features = torch.relu(self.norm1(self.conv1(x)))
        features = torch.relu(self.norm2(self.conv2(features)))
        low = torch.relu(self.norm3(self.conv3(features)))
        middle = self._blocks(low, 1, 4)
        high = self._blocks(middle, 5, 7)
        gates = torch.split(self.gate(torch.cat([low, middle, high], dim=1)), 1, dim=1)
        gated = low * gates[0] + middle * gates[1] + high * gates[2]
        features = torch.relu(self.norm4(self.deconv3(gated)))
        residual: Tensor = self.deconv1(torch.relu(self.norm5(self.deconv2(features))))
        return residual

    def _blocks(self, x: Tensor, first: int, last: int) -> Tensor:
        for number in range(first, last + 1):
            x = self.get_submodule(f"res{number}")(x)
        return x


def edges(image: Tensor) -> Tensor:
    """Return how much each pixel differs from its four neighbors, mean over channels, a quarter.

    Args:
        image: Shape ``(batch, channels, height, width)``.

    Returns:
        Shape ``(batch, 1, height, width)``.

    >>> edges(torch.tensor([[[[0.0, 4.0]]]]))
    tensor([[[[1., 1.]]]])
    """
    down = (image[:, :, 1:] - image[:, :, :-1]).abs()
    right = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs()
    total = functional.pad(down, (0, 0, 1, 0)) + functional.pad(down, (0, 0, 0, 1))
    total = total + functional.pad(right, (1, 0)) + functional.pad(right, (0, 1))
    return total.mean(dim=1, keepdim=True) / 4


def _conv(width_in: int, width_out: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        width_in, width_out, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
    )

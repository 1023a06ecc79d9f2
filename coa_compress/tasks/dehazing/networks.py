"""The built-in dehazing network: a gated U-shaped network with soft reconstruction."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class GatedBlock(nn.Module):
    """Residual block whose 3x3 features pass a gate that sees each pixel and the whole image.

    The gate of gUNet (Song et al. 2022, arXiv:2209.11448) with a global term added before the
    sigmoid, because the airlight is a property of the image and not of a neighborhood.

    Args:
        width: Channels of input and output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.value = nn.Conv2d(width, width, 3, padding=1)
        self.gate = nn.Conv2d(width, width, 1)
        self.context = nn.Conv2d(width, width, 1, bias=False)
        self.merge = nn.Conv2d(width, width, 1)
        # blocks start near the identity, so that depth costs nothing at the first steps
        nn.init.normal_(self.merge.weight, std=0.01)
        _zero_bias_(self.merge)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the gated features, same shape."""
        normed = self.norm(x)
        whole = self.context(normed.mean(dim=(2, 3), keepdim=True))
        gated = self.value(normed) * torch.sigmoid(self.gate(normed) + whole)
        return torch.add(x, self.merge(gated))


class Upsample(nn.Module):
    """Double height and width by a 1x1 convolution and a pixel shuffle."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width_in, 4 * width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape ``(batch, width_out, 2 * height, 2 * width)``."""
        return functional.pixel_shuffle(self.expand(x), 2)


class HazeUNet(nn.Module):
    """Dehaze by ``J = K * I - B + I``, gain K and offset B from a pyramid at 1/4, 1/8 and 1/16.

    The soft reconstruction follows AOD-Net (Li et al. 2017) and DehazeFormer (Song et al. 2022,
    arXiv:2204.03883). Haze is smooth and every pixel enters the stem through a pixel unshuffle,
    so a pyramid that starts at a quarter of the resolution loses no detail and is four times
    cheaper than one that starts at a half.

    Args:
        widths: Channels at 1/4, 1/8 and 1/16 of the resolution.
        depths: Blocks at each of these scales; the encoder and the decoder have that many each.
    """

    def __init__(
        self, widths: Sequence[int] = (64, 96, 128), depths: Sequence[int] = (2, 3, 4)
    ) -> None:
        super().__init__()
        self.shuffle = 4
        self.stride = self.shuffle * 2 ** (len(widths) - 1)
        area = self.shuffle**2
        self.stem = nn.Conv2d(3 * area, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(map(_blocks, widths, depths))
        self.down = nn.ModuleList(
            nn.Conv2d(wide, deep, 3, stride=2, padding=1) for wide, deep in pairwise(widths)
        )
        self.up = nn.ModuleList(Upsample(deep, wide) for wide, deep in pairwise(widths))
        self.fuse = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for width in widths[:-1])
        self.decoder = nn.ModuleList(map(_blocks, widths[:-1], depths[:-1]))
        self.head = nn.Conv2d(widths[0], 4 * area, 3, padding=1)
        nn.init.normal_(self.head.weight, std=0.003)
        _zero_bias_(self.head)

    def forward(self, hazy: Tensor) -> Tensor:
        """Return the dehazed image.

        Args:
            hazy: Shape ``(batch, 3, height, width)``, any height and width, values in ``[0, 1]``.

        Returns:
            Same shape; about ``[0, 1]``, unclamped.
        """
        height, width = hazy.shape[-2:]
        bottom, right = -height % self.stride, -width % self.stride
        image = functional.pad(hazy, (0, right, 0, bottom), mode="replicate")
        features = self.stem(functional.pixel_unshuffle(image * 2 - 1, self.shuffle))
        skips = []
        for level, down in enumerate(self.down):
            features = self.encoder[level](features)
            skips.append(features)
            features = down(features)
        features = self.encoder[-1](features)
        for level in reversed(range(len(skips))):
            raised = self.up[level](features)
            features = self.fuse[level](torch.cat([raised, skips[level]], dim=1))
            features = self.decoder[level](features)
        maps = functional.pixel_shuffle(self.head(features), self.shuffle)
        gain, offset = torch.split(maps, [1, 3], dim=1)
        restored = (gain + 1) * image - offset
        return restored[:, :, :height, :width]


def _blocks(width: int, depth: int) -> nn.Sequential:
    return nn.Sequential(*[GatedBlock(width) for _ in range(depth)])


@torch.no_grad()
def _zero_bias_(conv: nn.Conv2d) -> None:
    if conv.bias is not None:
        conv.bias.zero_()

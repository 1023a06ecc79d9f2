"""DehazeFormer-T with additive skips (Song et al. 2023, arXiv:2204.03883)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_STRIDE = 4
_WINDOW = 8
_EPSILON = 1e-5


class RescaledNorm(nn.Module):
    """Layer norm over channels and positions that gives its mean and deviation back later.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.meta1 = nn.Conv2d(1, width, 1)
        self.meta2 = nn.Conv2d(1, width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normed features, and the scale and shift for what is made of them."""
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        centered = x - mean
        deviation = (centered.square().mean(dim=(1, 2, 3), keepdim=True) + _EPSILON).sqrt()
        normed = centered / deviation * self.weight + self.bias
        return normed, self.meta1(deviation), self.meta2(mean)


class WindowAttention(nn.Module):
    """Attention among the positions of a window, with a bias computed from their distance.

    Args:
        heads: Number of heads.
        head_width: Channels of each.
    """

    def __init__(self, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = head_width**-0.5
        self.register_buffer("relative_positions", _relative_positions(_WINDOW))
        self.meta = nn.Sequential(nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, heads))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values; all of shape ``(batch, channels, height, width)``."""
        height, width = value.shape[-2:]
        query, key, value = (self._windows(part) for part in (query, key, value))
        bias = self.meta(self.relative_positions).permute(2, 0, 1)
        weights = (query * self.scale @ key.transpose(-2, -1) + bias).softmax(dim=-1)
        return self._image(weights @ value, height // _WINDOW, width // _WINDOW)

    def _windows(self, x: Tensor) -> Tensor:
        """Return shape ``(windows, heads, positions, head_width)``."""
        rows, columns = x.shape[-2] // _WINDOW, x.shape[-1] // _WINDOW
        x = x.reshape(len(x), self.heads, -1, rows, _WINDOW, columns, _WINDOW)
        return x.permute(0, 3, 5, 1, 4, 6, 2).flatten(4, 5).flatten(0, 2)

    def _image(self, x: Tensor, rows: int, columns: int) -> Tensor:
        x = x.reshape(-1, rows, columns, self.heads, _WINDOW, _WINDOW, x.shape[-1])
        return x.permute(0, 3, 6, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4).flatten(1, 2)


class ParallelMixer(nn.Module):
    """Depthwise convolution of the values and, in parallel, attention in (shifted) windows.

    Args:
        width: Channels.
        heads: Heads of the attention; 0 for none.
        shift: How far the windows are shifted.
    """

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.conv = nn.Conv2d(width, width, 5, padding=2, groups=width, padding_mode="reflect")
        self.V = nn.Conv2d(width, width, 1)
        self.proj = nn.Conv2d(width, width, 1)
        self.attn: WindowAttention | None = None
        if heads:
            self.QK = nn.Conv2d(width, 2 * width, 1)
            self.attn = WindowAttention(heads, width // heads)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed features, same shape."""
        value = self.V(x)
        mixed = self.conv(value)
        if self.attn is not None:
            mixed = mixed + self._attended(self.QK(x), value, self.attn)
        projected: Tensor = self.proj(mixed)
        return projected

    def _attended(self, query_key: Tensor, value: Tensor, attention: WindowAttention) -> Tensor:
        height, width = value.shape[-2:]
        bottom, right = -(height + self.shift) % _WINDOW, -(width + self.shift) % _WINDOW
        padding = (self.shift, right, self.shift, bottom)
        query, key = functional.pad(query_key, padding, mode="reflect").chunk(2, dim=1)
        out = attention(query, key, functional.pad(value, padding, mode="reflect"))
        rows, columns = (
            slice(self.shift, self.shift + height),
            slice(self.shift, self.shift + width),
        )
        cropped: Tensor = out[:, :, rows, columns]
        return cropped


class Mlp(nn.Module):
    """Two 1x1 convolutions.

    Args:
        width: Channels of input and output.
        hidden: Channels between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, same shape."""
        mixed: Tensor = self.mlp(x)
        return mixed


class Block(nn.Module):
    """A mixer, normed where it attends, and an MLP, each with a shortcut.

    Args:
        width: Channels.
        hidden: Channels within the MLP.
        heads: Heads of the attention; 0 for a block without attention and norm.
        shift: How far the windows are shifted.
    """

    def __init__(self, width: int, *, hidden: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1 = RescaledNorm(width) if heads else None
        self.attn = ParallelMixer(width, heads, shift)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, same shape."""
        if self.norm1 is None:
            x = x + self.attn(x)
        else:
            normed, scale, shift = self.norm1(x)
            x = x + (self.attn(normed) * scale + shift)
        out: Tensor = x + self.mlp(x)
        return out


class Stage(nn.Module):
    """Blocks of one width, the last of which attend.

    Args:
        width: Channels.
        depth: Number of blocks.
        expansion: Channels within the MLP, as a multiple of the width.
        heads: Heads of the attention; 0 for no attention.
        attending: How many blocks at the end attend.
    """

    def __init__(
        self, width: int, depth: int, *, expansion: int, heads: int = 0, attending: int = 0
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *[
                Block(
                    width,
                    hidden=expansion * width,
                    heads=heads if number >= depth - attending else 0,
                    shift=number % 2 * _WINDOW // 2,
                )
                for number in range(depth)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, same shape."""
        mixed: Tensor = self.blocks(x)
        return mixed


class Embed(nn.Module):
    """A convolution into another width, to a lower resolution if its stride is above 1.

    Args:
        width_in: Channels of the input.
        width_out: Channels of the output.
        size: Side of the kernel.
        stride: By how much the resolution falls.
    """

    def __init__(self, width_in: int, width_out: int, *, size: int, stride: int) -> None:
        super().__init__()
        padding = (size - stride + 1) // 2
        self.proj = nn.Conv2d(
            width_in, width_out, size, stride=stride, padding=padding, padding_mode="reflect"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedded features."""
        embedded: Tensor = self.proj(x)
        return embedded


class Unembed(nn.Module):
    """A convolution and a pixel shuffle to a higher resolution.

    Args:
        width_in: Channels of the input.
        width_out: Channels of the output.
        size: Side of the kernel.
        scale: By how much the resolution rises.
    """

    def __init__(self, width_in: int, width_out: int, *, size: int, scale: int) -> None:
        super().__init__()
        out = width_out * scale**2
        conv = nn.Conv2d(width_in, out, size, padding=size // 2, padding_mode="reflect")
        self.proj = nn.Sequential(conv, nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features at the higher resolution."""
        raised: Tensor = self.proj(x)
        return raised


class DehazeFormerT(nn.Module):
    """A U-shaped network that returns a gain and an offset of the image, at its full resolution.

    The published network works on images in ``[-1, 1]``; here they are in ``[0, 1]`` and of any
    size. Names of parameters are those of the published weight file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Embed(3, 24, size=3, stride=1)
        self.layer1 = Stage(24, 4, expansion=2)
        self.patch_merge1 = Embed(24, 48, size=2, stride=2)
        self.layer2 = Stage(48, 4, expansion=4, heads=4, attending=2)
        self.patch_merge2 = Embed(48, 96, size=2, stride=2)
        self.layer3 = Stage(96, 4, expansion=4, heads=6, attending=4)
        self.patch_split1 = Unembed(96, 48, size=1, scale=2)
        self.layer4 = Stage(48, 2, expansion=2)
        self.patch_split2 = Unembed(48, 24, size=1, scale=2)
        self.layer5 = Stage(24, 2, expansion=2)
        self.patch_unembed = Unembed(24, 4, size=3, scale=1)

    def forward(self, hazy: Tensor) -> Tensor:
        """Return the dehazed image.

        Args:
            hazy: Shape ``(batch, 3, height, width)``, values in ``[0, 1]``; sides of at least 17.

        Returns:
            Same shape; about ``[0, 1]``, unclamped.
        """
        height, width = hazy.shape[-2:]
        padding = (0, -width % _STRIDE, 0, -height % _STRIDE)
        image = functional.pad(hazy * 2 - 1, padding, mode="reflect")
        gain, offset = torch.split(self._maps(image), [1, 3], dim=1)
        restored = gain * image - offset + image
        return (restored[:, :, :height, :width] + 1) / 2

    def _maps(self, image: Tensor) -> Tensor:
        full = self.layer1(self.patch_embed(image))
        half = self.layer2(self.patch_merge1(full))
        quarter = self.layer3(self.patch_merge2(half))
        half = self.layer4(self.patch_split1(quarter) + half)
        full = self.layer5(self.patch_split2(half) + full)
        maps: Tensor = self.patch_unembed(full)
        return maps


def _relative_positions(window: int) -> Tensor:
    """Return signed logarithmic distances of all positions, shape ``(window**2, window**2, 2)``."""
    steps = torch.arange(window, dtype=torch.float32)
    places = torch.cartesian_prod(steps, steps)
    distances = places[:, None] - places[None, :]
    return distances.sign() * distances.abs().log1p()

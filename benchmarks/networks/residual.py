"""A plain residual network for denoising and super-resolution, after EDSR."""

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two convolutions without norm (Lim et al. 2017, arXiv:1707.02921)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the features with what the block adds."""
        added: torch.Tensor = features + self.body(features)
        return added


class ResidualNet(nn.Module):
    """Images to images of ``scale`` times the size; learns what to add to a plain enlargement.

    Args:
        scale: 1 or 2.
        width: Channels.
        blocks: How many blocks.
    """

    def __init__(self, scale: int = 1, width: int = 32, blocks: int = 6) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))
        tail = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        self.tail = nn.Sequential(tail, nn.PixelShuffle(scale)) if scale > 1 else tail

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return restored images.

        Args:
            image: Shape ``(batch, 3, height, width)``, values in ``[0, 1]``.
        """
        features = self.head(image)
        added: torch.Tensor = self.tail(features + self.body(features))
        if self.scale > 1:
            image = nn.functional.interpolate(image, scale_factor=self.scale, mode="bilinear")
        return image + added


def denoiser() -> ResidualNet:
    """Return a network that keeps the size."""
    return ResidualNet(1)


def upscaler() -> ResidualNet:
    """Return a network that doubles the size."""
    return ResidualNet(2)

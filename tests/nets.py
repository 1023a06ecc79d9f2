"""Small networks and helpers for tests."""

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional


def randomize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network weights and statistics of which none is idle."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.rand(parameter.shape, generator=generator) - 0.4
            parameter.copy_(values / max(1.0, parameter[0].numel() ** 0.5))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                low = 0.5 if name.endswith("running_var") else -0.5
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + low)
    return model


def random_channels(widths: dict[str, int], seed: int, *, least: int = 1) -> dict[str, Tensor]:
    """Return random channel numbers to keep of each group, fewer than all."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for name, width in widths.items():
        low = min(least, width - 1)
        count = int(torch.randint(low, width, (1,), generator=generator))
        kept[name] = torch.randperm(width, generator=generator)[:count].sort().values
    return kept


class Residual(nn.Module):
    """Norm, two convolutions, sum."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, hidden, 3, padding=1)
        self.second = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(functional.gelu(self.first(self.norm(x))))


class Gate(nn.Module):
    """Depthwise convolution and a gate of one half by the other."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(width, 2 * hidden, 1)
        self.spread = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden)
        self.merge = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.spread(self.expand(x)).chunk(2, dim=1)
        return x + self.merge(value * torch.sigmoid(gate))


class Concat(nn.Module):
    """Two branches side by side."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.left = nn.Conv2d(width, hidden, 3, padding=1)
        self.right = nn.Conv2d(width, hidden + 1, 1)
        self.merge = nn.Conv2d(2 * hidden + 1, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.merge(torch.relu(torch.cat([self.left(x), self.right(x)], dim=1)))


class Pyramid(nn.Module):
    """Down by a stride, up by a transposed convolution."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, hidden, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(hidden, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(torch.tanh(self.down(x)))


class Pixels(nn.Module):
    """Space to depth and back."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4 * width, 4 * hidden, 1, groups=2)
        self.merge = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        packed = torch.sigmoid(self.inner(functional.pixel_unshuffle(x, 2)))
        return x * torch.sigmoid(self.merge(functional.pixel_shuffle(packed, 2)))


class Tokens(nn.Module):
    """Layer norm and two linear layers over channels."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, hidden)
        self.second = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x.permute(0, 2, 3, 1))
        return x + self.second(functional.silu(self.first(tokens))).permute(0, 3, 1, 2)


BLOCKS = (Residual, Gate, Concat, Pyramid, Pixels, Tokens)


@st.composite
def small_networks(draw: st.DrawFn) -> nn.Module:
    """Draw a chain of blocks between a stem and a head."""
    width = 2 * draw(st.integers(2, 4))
    kinds = draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=3))
    hidden = [2 * draw(st.integers(2, 4)) for _ in kinds]
    blocks = [kind(width, size) for kind, size in zip(kinds, hidden, strict=True)]
    stem, head = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 1)
    return randomize_(nn.Sequential(stem, *blocks, head))

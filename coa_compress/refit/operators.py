"""Linear operators as matrices that act on sampled rows: what a call does with its weight."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Size: TypeAlias = tuple[int, ...]
"""The shape of an output without its channels."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of any number of spatial dimensions, or a transposed one.

    Args:
        stride: Of each spatial dimension.
        padding: Zeros before the first position, of each spatial dimension.
        dilation: Of each spatial dimension.
        groups: How many groups of channels do not see each other.
        transposed: Whether it is the transposed operator.
    """

    stride: Size
    padding: Size
    dilation: Size
    groups: int = 1
    transposed: bool = False

    @property
    def channel_dim(self) -> int:
        """Dimension of the output that holds the channels."""
        return 1

    def input_dim(self, shape: torch.Size) -> int:
        """Return the dimension of the weight that reads the input channels.

        A depthwise convolution has one input channel a group: its inputs go with its outputs.
        """
        return 0 if self.transposed or (self.groups > 1 and shape[1] == 1) else 1

    def kept_outputs(self, slices: Mapping[int, Tensor], shape: torch.Size) -> Tensor | None:
        """Return the output channels of the uncut layer that are left, or None for all.

        Args:
            slices: Kept positions of the dimensions of its weight.
            shape: Of its uncut weight; ``groups`` is that of the uncut layer too.
        """
        if not self.transposed:
            return slices.get(0)
        if self.groups == 1:
            return slices.get(1)
        if not slices:
            return None
        a_group = shape[0] // self.groups
        groups: Tensor = torch.unique(slices.get(0, torch.arange(shape[0])) // a_group)
        within = slices.get(1, torch.arange(shape[1]))
        outputs: Tensor = groups[:, None] * shape[1] + within
        return outputs.flatten()

    def matrices(self, weight: Tensor) -> Tensor:
        """Return the weight as one matrix a group, shape ``(groups, features, outputs)``.

        The features are the taps of the kernel, row by row, and in each the input channels of the
        group: the order of ``rows``.

        >>> Convolution((1,), (0,), (1,), groups=2).matrices(torch.zeros(6, 2, 3)).shape
        torch.Size([2, 6, 3])
        """
        grouped = weight.reshape(self.groups, -1, weight.shape[1], math.prod(weight.shape[2:]))
        order = (0, 3, 1, 2) if self.transposed else (0, 3, 2, 1)
        return grouped.permute(order).flatten(1, 2)

    def weight(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """Return a weight of that shape from its matrices: the inverse of ``matrices``."""
        taps = torch.unflatten(matrices, 1, (math.prod(shape[2:]), -1))
        order = (0, 2, 3, 1) if self.transposed else (0, 3, 2, 1)
        return taps.permute(order).reshape(shape)

    def rows(self, given: Tensor, places: Tensor, size: Size, shape: torch.Size) -> Tensor:
        """Return what is read to compute some positions of the output.

        Only these positions are gathered; the input is never unfolded as a whole.

        Args:
            given: The input, shape ``(batch, channels, ...)``.
            places: Numbers of output positions, counted along ``size``.
            size: Shape of the output without its channels.
            shape: Of the weight.

        Returns:
            Shape ``(groups, n_places, features)``.

        >>> operator = Convolution((1,), (1,), (1,))
        >>> operator.rows(torch.tensor([[[1.0, 2.0]]]), torch.tensor([0]), (1, 2), (1, 1, 3))
        tensor([[[0., 1., 2.]]])
        """
        batch, *starts = torch.unravel_index(places, size)
        rank = len(starts)
        index, valid = [batch.view(-1, *[1] * rank)], torch.ones_like(index_mask(batch, rank))
        for dim, start in enumerate(starts):
            source, inside = self._sources(dim, start, given.shape[2 + dim], shape[2 + dim])
            view = (len(batch), *[1] * dim, -1, *[1] * (rank - dim - 1))
            index.append(source.view(view))
            valid = valid & inside.view(view)
        patches = given.movedim(1, -1)[tuple(index)] * valid[..., None]
        grouped = patches.reshape(len(batch), -1, self.groups, given.shape[1] // self.groups)
        return grouped.movedim(2, 0).flatten(2)

    def _sources(self, dim: int, start: Tensor, limit: int, taps: int) -> tuple[Tensor, Tensor]:
        """Return which input position each tap reads, and whether there is one."""
        offsets = torch.arange(taps, device=start.device) * self.dilation[dim]
        stride, padding = self.stride[dim], self.padding[dim]
        if self.transposed:
            # output position = input position * stride - padding + tap * dilation
            scaled = start[:, None] + padding - offsets
            source, hit = scaled.div(stride, rounding_mode="floor"), scaled % stride == 0
        else:
            source = start[:, None] * stride - padding + offsets
            hit = torch.ones_like(source, dtype=torch.bool)
        return source.clamp(0, limit - 1), hit & (source >= 0) & (source < limit)


def index_mask(batch: Tensor, rank: int) -> Tensor:
    """Return a mask of one truth value for each position, with ``rank`` more dimensions."""
    return torch.ones(len(batch), *[1] * rank, dtype=torch.bool, device=batch.device)


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A matrix that acts on the channels of each position: linear layers, products, einsum.

    Args:
        given_dim: Dimension of the input that is contracted, from the end.
        channel_dim: Dimension of the output that holds the channels, from the end.
        reads: Dimension of the weight that is contracted, 0 or 1.
    """

    given_dim: int = -1
    channel_dim: int = -1
    reads: int = 1

    def input_dim(self, shape: torch.Size) -> int:
        """Return the dimension of the weight that reads the input channels."""
        del shape
        return self.reads

    def kept_outputs(self, slices: Mapping[int, Tensor], shape: torch.Size) -> Tensor | None:
        """Return the output channels of the uncut layer that are left, or None for all."""
        del shape
        return slices.get(1 - self.reads)

    def matrices(self, weight: Tensor) -> Tensor:
        """Return the weight as a matrix, shape ``(1, features, outputs)``."""
        return (weight.t() if self.reads else weight)[None]

    def weight(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """Return a weight of that shape from its matrix."""
        return (matrices[0].t() if self.reads else matrices[0]).reshape(shape)

    def rows(self, given: Tensor, places: Tensor, size: Size, shape: torch.Size) -> Tensor:
        """Return what is read to compute some positions, shape ``(1, n_places, features)``."""
        del size, shape
        return values_at(given, places, self.given_dim)[None]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Running statistics of a normalization, which its input should have.

    Args:
        channel_dim: Dimension of input and output that holds the channels.
    """

    channel_dim: int

    def input_dim(self, shape: torch.Size) -> int:
        """Return the dimension of the statistics."""
        del shape
        return 0

    def kept_outputs(self, slices: Mapping[int, Tensor], shape: torch.Size) -> Tensor | None:
        """Return the output channels of the uncut layer that are left, or None for all."""
        del shape
        return slices.get(0)


@dataclass(frozen=True, slots=True)
class Scale:
    """A factor for each channel, as a normalization has behind it.

    Args:
        channel_dim: Dimension of input and output that holds the channels.
    """

    channel_dim: int

    def input_dim(self, shape: torch.Size) -> int:
        """Return the dimension of the weight that reads the input channels."""
        del shape
        return 0

    def kept_outputs(self, slices: Mapping[int, Tensor], shape: torch.Size) -> Tensor | None:
        """Return the output channels of the uncut layer that are left, or None for all."""
        del shape
        return slices.get(0)

    def matrices(self, weight: Tensor) -> Tensor:
        """Return the factors as matrices of one row and column, shape ``(channels, 1, 1)``."""
        return weight[:, None, None]

    def weight(self, matrices: Tensor, shape: torch.Size) -> Tensor:
        """Return factors of that shape from their matrices."""
        return matrices.reshape(shape)

    def rows(self, given: Tensor, places: Tensor, size: Size, shape: torch.Size) -> Tensor:
        """Return the channels at some positions, shape ``(channels, n_places, 1)``."""
        del size, shape
        return values_at(given, places, self.channel_dim).t()[..., None]


LinearOperator: TypeAlias = Convolution | Pointwise | Scale
"""Whatever is linear in its weight."""

Operator: TypeAlias = LinearOperator | Statistics
"""Whatever can be refitted."""


def values_at(tensor: Tensor, places: Tensor, channel_dim: int) -> Tensor:
    """Return the channels at some positions, shape ``(n_places, channels)``.

    Args:
        tensor: Any shape.
        places: Numbers of the positions, counted along the other dimensions.
        channel_dim: Which dimension holds the channels.

    >>> values_at(torch.arange(8).view(1, 2, 2, 2), torch.tensor([3]), 1)
    tensor([[3, 7]])
    """
    last = tensor.movedim(channel_dim, -1)
    if last.dim() == 1:
        return last[None]
    return last[torch.unravel_index(places, last.shape[:-1])]


def size_of(output: Tensor, channel_dim: int) -> Size:
    """Return the shape of a tensor without its channel dimension.

    >>> size_of(torch.zeros(2, 3, 4, 5), 1)
    (2, 4, 5)
    """
    sizes = list(output.shape)
    sizes.pop(channel_dim)
    return tuple(sizes)

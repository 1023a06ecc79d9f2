"""Arithmetic on layers: parallel convolutions as one, and a convolution with its batch norm."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from coa_compress.errors import StructureError


@torch.no_grad()
def merged(branches: Sequence[nn.Module], *, channels: int) -> nn.Conv2d:
    """Return one convolution that equals the sum of parallel branches.

    Args:
        branches: Convolutions of one stride, batch norms as in evaluation mode, identities, or
            sequences of a convolution and a batch norm; unchanged.
        channels: Channels of the input.

    Raises:
        StructureError: If a branch is something else, or the branches have other strides, groups,
            dilations, channels or sizes of the output.

    >>> conv = merged([nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)], channels=2)
    >>> conv.kernel_size, conv.padding
    ((3, 3), (1, 1))
    """
    convs = [_as_conv(branch, channels) for branch in branches]
    _check_alike(convs)
    first = convs[0]
    padding = [max(_padding(conv)[i] for conv in convs) for i in (0, 1)]
    size = [2 * padding[i] - slack_of(first)[i] for i in (0, 1)]
    weight = first.weight.new_zeros(first.out_channels, channels // first.groups, *size)
    bias = first.weight.new_zeros(first.out_channels)
    for conv in convs:
        top, left = (padding[i] - _padding(conv)[i] for i in (0, 1))
        height, width = conv.kernel_size
        weight[:, :, top : top + height, left : left + width] += conv.weight
        bias += 0 if conv.bias is None else conv.bias
    return _conv_of(weight, bias, like=first, padding=(padding[0], padding[1]))


@torch.no_grad()
def with_folded_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return a convolution that equals a convolution and the batch norm after it.

    Args:
        conv: Unchanged.
        norm: As in evaluation mode; unchanged.

    Raises:
        StructureError: If the norm has no running statistics or other channels.

    >>> conv, norm = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2).eval()
    >>> x = torch.rand(1, 3, 4, 4)
    >>> torch.allclose(with_folded_norm(conv, norm)(x), norm(conv(x)), atol=1e-6)
    True
    """
    if norm.num_features != conv.out_channels:
        message = f"cannot fold a norm of {norm.num_features} channels into a convolution of "
        message += f"{conv.out_channels}: they do not belong together"
        raise StructureError(message)
    scale, shift = _affine(norm)
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    weight = conv.weight * scale[:, None, None, None]
    padding = (conv.padding, conv.padding) if isinstance(conv.padding, int) else conv.padding
    return _conv_of(weight, bias * scale + shift, like=conv, padding=padding)


def _as_conv(branch: nn.Module, channels: int) -> nn.Conv2d:
    if isinstance(branch, nn.Sequential) and len(branch) == 2:
        conv, norm = branch
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            return with_folded_norm(conv, norm)
    if isinstance(branch, nn.Conv2d):
        return branch
    if isinstance(branch, nn.Identity | nn.BatchNorm2d):
        conv = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.dirac_(conv.weight)
        if isinstance(branch, nn.Identity):
            return conv
        return with_folded_norm(conv.to(branch.running_mean), branch)
    message = f"a {type(branch).__name__} is no convolution, batch norm or identity"
    raise StructureError(message)


def _check_alike(convs: Sequence[nn.Conv2d]) -> None:
    if not convs:
        message = "there is no branch to merge"
        raise StructureError(message)
    alike: Mapping[str, list[object]] = {
        "strides": [conv.stride for conv in convs],
        "channels": [(conv.in_channels, conv.out_channels) for conv in convs],
        "groups": [conv.groups for conv in convs],
        "paddings": [conv.padding_mode for conv in convs],
        "dilations": [conv.dilation for conv in convs],
        "sizes of the output": [slack_of(conv) for conv in convs],
    }
    for what, values in alike.items():
        if len(set(values)) > 1:
            shown = " and ".join(str(value) for value in dict.fromkeys(values))
            message = f"the branches have other {what}, {shown}: they must be the same"
            raise StructureError(message)
    if any(conv.padding == "same" and not all(k % 2 for k in conv.kernel_size) for conv in convs):
        message = "a kernel of an even size is padded on one side only: it cannot be merged"
        raise StructureError(message)
    if convs[0].padding_mode != "zeros" or convs[0].dilation != (1, 1):
        message = "branches must be padded with zeros and have no dilation"
        raise StructureError(message)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    if norm.running_mean is None or norm.running_var is None:
        message = "a batch norm without running statistics depends on its batch: it cannot be "
        message += "folded"
        raise StructureError(message)
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _conv_of(
    weight: Tensor, bias: Tensor, *, like: nn.Conv2d, padding: "str | tuple[int, ...]"
) -> nn.Conv2d:
    groups = like.groups
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (int(weight.shape[2]), int(weight.shape[3])),
        stride=pair(like.stride),
        padding=padding,  # type: ignore[arg-type]
        dilation=pair(like.dilation),
        groups=groups,
        padding_mode=like.padding_mode,
    ).to(weight)
    conv.weight.copy_(weight)
    if conv.bias is not None:
        conv.bias.copy_(bias)
    return conv.train(like.training)


def _padding(conv: nn.Conv2d) -> tuple[int, int]:
    if isinstance(conv.padding, str):
        if conv.padding == "valid":
            return 0, 0
        height, width = conv.kernel_size
        return height // 2, width // 2
    return conv.padding[0], conv.padding[1]


def pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    """Return the two sizes of a two-dimensional layer.

    >>> pair(nn.Conv2d(1, 1, 3, stride=2).stride)
    (2, 2)
    """
    height, width = sizes
    return height, width


def slack_of(conv: nn.Conv2d) -> tuple[int, int]:
    """Return by how much padding exceeds the kernel, in height and width.

    >>> slack_of(nn.Conv2d(1, 1, 3, padding=1))
    (-1, -1)
    """
    high, wide = _padding(conv)
    return 2 * high - conv.kernel_size[0], 2 * wide - conv.kernel_size[1]

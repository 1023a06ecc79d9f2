"""Convolutions and linear layers as matrices that act on sampled rows."""

from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

LinearMap: TypeAlias = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
"""A layer whose output is linear in its weight."""


def is_linear_map(module: nn.Module) -> TypeGuard[LinearMap]:
    """Return whether a layer can be refitted.

    >>> is_linear_map(nn.Conv2d(1, 1, 1)), is_linear_map(nn.ReLU())
    (True, False)
    """
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)


def input_dim(module: LinearMap) -> int:
    """Return the dimension of the weight that reads the input channels.

    A depthwise convolution has one input channel a group: its inputs go with its outputs.
    """
    if isinstance(module, nn.ConvTranspose2d):
        return 0
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
    return 0 if depthwise else 1


def output_dim(module: LinearMap) -> int:
    """Return the dimension of the weight that writes the output channels.

    Of a transposed convolution with groups it holds the outputs of one group.
    """
    return 1 if isinstance(module, nn.ConvTranspose2d) else 0


def weight_matrices(module: LinearMap) -> Tensor:
    """Return the weight as one matrix a group, shape ``(groups, features, outputs)``.

    The features are the taps of the kernel, row by row, and in each the input channels of the
    group: the order of ``input_rows``.

    >>> weight_matrices(nn.Conv2d(4, 6, 3, groups=2)).shape
    torch.Size([2, 18, 3])
    """
    weight = module.weight
    if isinstance(module, nn.Linear):
        return weight.t()[None]
    grouped = weight.reshape(module.groups, -1, *weight.shape[1:])
    order = (0, 3, 4, 1, 2) if isinstance(module, nn.ConvTranspose2d) else (0, 3, 4, 2, 1)
    return grouped.permute(order).flatten(1, 3)


@torch.no_grad()
def add_to_weight_(module: LinearMap, matrices: Tensor, bias: Tensor | None) -> None:
    """Add an update to the weight and the bias.

    Args:
        module: The layer.
        matrices: Shape as ``weight_matrices`` returns.
        bias: Shape ``(outputs,)``; None where the layer has none.

    >>> layer = nn.Linear(2, 1)
    >>> before = layer.weight.detach().clone()
    >>> add_to_weight_(layer, torch.ones(1, 2, 1), None)
    >>> torch.allclose(layer.weight, before + 1)
    True
    """
    weight = module.weight
    if isinstance(module, nn.Linear):
        update = matrices[0].t()
    else:
        groups, _, outputs = matrices.shape
        taps = matrices.reshape(groups, *module.kernel_size, -1, outputs)
        order = (0, 3, 4, 1, 2) if isinstance(module, nn.ConvTranspose2d) else (0, 4, 3, 1, 2)
        update = taps.permute(order).flatten(0, 1)
    weight.add_(update.to(weight))
    if bias is not None and module.bias is not None:
        module.bias.add_(bias.to(module.bias))


def input_rows(module: LinearMap, inputs: Tensor, rows: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return what the layer reads to compute some positions of its output.

    Only these positions are gathered; the input is never unfolded as a whole.

    Args:
        module: The layer.
        inputs: Its input, shape ``(batch, channels, height, width)``; for a linear layer
            ``(..., channels)``.
        rows: Numbers of output positions, counted along ``size``.
        size: Shape of the output without its channels.

    Returns:
        Shape ``(groups, n_rows, features)``.

    >>> layer = nn.Conv2d(2, 3, 3, padding=1)
    >>> x = torch.rand(1, 2, 4, 4)
    >>> rows = input_rows(layer, x, torch.tensor([5]), (1, 4, 4))
    >>> value = (rows @ weight_matrices(layer))[0, 0] + layer.bias
    >>> torch.allclose(value, layer(x)[0, :, 1, 1], atol=1e-6)
    True
    """
    if isinstance(module, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1])[rows][None]
    images, tops, lefts = torch.unravel_index(rows, size)
    if isinstance(module, nn.ConvTranspose2d):
        patches = _transposed_patches(module, inputs, images, tops, lefts)
    else:
        patches = _patches(module, inputs, images, tops, lefts)
    grouped = patches.reshape(*patches.shape[:3], module.groups, -1).movedim(3, 0)
    return grouped.flatten(2)


def _patches(
    module: nn.Conv2d, inputs: Tensor, images: Tensor, tops: Tensor, lefts: Tensor
) -> Tensor:
    padded = _padded(module, inputs)
    taps = [
        start[:, None] * stride + torch.arange(size, device=inputs.device) * dilation
        for start, size, stride, dilation in zip(
            (tops, lefts), module.kernel_size, module.stride, module.dilation, strict=True
        )
    ]
    return padded.movedim(1, -1)[images[:, None, None], taps[0][:, :, None], taps[1][:, None, :]]


def _padded(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    sides: list[int] = []
    for dim in (1, 0):
        whole = module.dilation[dim] * (module.kernel_size[dim] - 1)
        if module.padding == "same":
            sides += [whole // 2, whole - whole // 2]
        else:
            side = 0 if isinstance(module.padding, str) else module.padding[dim]
            sides += [int(side), int(side)]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(inputs, sides, mode=mode) if any(sides) else inputs


def _transposed_patches(
    module: nn.ConvTranspose2d, inputs: Tensor, images: Tensor, tops: Tensor, lefts: Tensor
) -> Tensor:
    sources, valid = [], []
    for dim, start in enumerate((tops, lefts)):
        stride, limit = module.stride[dim], inputs.shape[2 + dim]
        taps = torch.arange(module.kernel_size[dim], device=inputs.device)
        # output position = input position * stride - padding + tap * dilation
        offset = start[:, None] + int(module.padding[dim]) - taps * module.dilation[dim]
        source = offset.div(stride, rounding_mode="floor")
        valid.append((offset % stride == 0) & (source >= 0) & (source < limit))
        sources.append(source.clamp(0, limit - 1))
    rows, columns = sources[0][:, :, None], sources[1][:, None, :]
    patches = inputs.movedim(1, -1)[images[:, None, None], rows, columns]
    return patches * (valid[0][:, :, None] & valid[1][:, None, :])[..., None]

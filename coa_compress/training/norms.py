"""Batch normalization over the batch of all processes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from coa_compress.training.processes import Processes


@contextmanager
def shared_norms(module: nn.Module, processes: Processes) -> Iterator[None]:
    """Compute batch statistics over all processes within a block, on any device.

    A network that is trained in shares then sees the statistics of the whole batch, as one
    process with that batch does. ``torch.nn.SyncBatchNorm`` does the same on GPUs only.

    Args:
        module: Its ``BatchNorm`` layers in training mode are affected, and as before on exit.
        processes: Every one must run the same layers in the same order, on shares of one size.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        if processes.count > 1:
            for norm in module.modules():
                if isinstance(norm, _BatchNorm):
                    norm.forward = partial(_forward, norm, processes)  # type: ignore[method-assign]
                    stack.callback(norm.__dict__.pop, "forward")
        yield


def other_buffers(module: nn.Module) -> Iterator[Tensor]:
    """Yield the buffers of all layers but batch normalizations.

    >>> list(other_buffers(nn.BatchNorm2d(2)))
    []
    """
    for part in module.modules():
        if not isinstance(part, _BatchNorm):
            yield from part.buffers(recurse=False)


def _forward(norm: _BatchNorm, processes: Processes, given: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, given)
    values = given.float() if given.dtype in (torch.bfloat16, torch.float16) else given
    dims = [0, *range(2, values.dim())]
    mean = processes.mean(values.mean(dims))
    shape = [1, -1, *[1] * (values.dim() - 2)]
    centered = values - mean.view(shape)
    variance = processes.mean(centered.square().mean(dims))
    _update_(norm, mean, variance, count=processes.count * values.numel() // values.shape[1])
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    output = centered * scale.view(shape)
    if norm.affine:
        output = output + norm.bias.view(shape)
    return output.to(given.dtype)


@torch.no_grad()
def _update_(norm: _BatchNorm, mean: Tensor, variance: Tensor, *, count: int) -> None:
    """Move the running statistics as ``torch.nn.BatchNorm`` does."""
    if norm.running_mean is None or norm.running_var is None:
        return
    part = norm.momentum
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        part = 1.0 / float(norm.num_batches_tracked) if part is None else part
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), part or 0.0)
    unbiased = variance * (count / max(1, count - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), part or 0.0)

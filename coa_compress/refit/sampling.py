"""Inputs and outputs of single layers, at a bounded number of positions."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch

Visit = Callable[[str, Tensor, Tensor], None]
"""Called with the path, the input and the output of a layer whenever it runs."""


_FEWEST_TO_DIVIDE = 5


class _InputReachedError(Exception):
    """Ends a forward pass as soon as the wanted input is known."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Outputs of one layer at some positions of one batch.

    Args:
        rows: Numbers of the positions, counted along ``size``.
        size: Shape of the whole output without its channels.
        held: True at positions that judge a fit and are not used in it.
        values: The outputs, shape ``(n_rows, channels)``.
    """

    rows: Tensor
    size: tuple[int, ...]
    held: Tensor
    values: Tensor

    def of_channels(self, kept: Tensor) -> "Sample":
        """Return the same positions with some of the channels."""
        values = self.values[:, kept.to(self.values.device)]
        return Sample(self.rows, self.size, self.held, values)


@dataclass(frozen=True, slots=True, eq=False)
class Portion:
    """A calibration batch and its part in the whole.

    The last fifth of all examples judges fits. Where there are fewer than five examples, a fifth
    of the positions does.

    Args:
        batch: The examples.
        n_positions: How many positions of each output are sampled.
        n_fitting: How many of its examples, from the first, are fitted to; None when the
            examples are too few to be divided.
    """

    batch: Batch
    n_positions: int
    n_fitting: int | None

    def held(self, rows: Tensor, n_rows: int) -> Tensor:
        """Return which positions judge.

        Args:
            rows: Numbers of positions of an output, in which examples vary slowest.
            n_rows: All positions of the output.
        """
        if self.n_fitting is None:
            return torch.arange(len(rows), device=rows.device) % 5 == 0
        return rows * len(self.batch.input) // n_rows >= self.n_fitting

    def fitting_part(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor that belongs to the examples that are fitted to."""
        if self.n_fitting is None:
            return tensor
        return tensor[: len(tensor) * self.n_fitting // len(self.batch.input)]


def portions_of(batches: Sequence[Batch], positions: int) -> list[Portion]:
    """Return the batches with their parts in the whole.

    Args:
        batches: Calibration examples.
        positions: Most positions of one layer's output, over all batches.

    >>> five = [Batch(torch.zeros(3, 1)), Batch(torch.zeros(2, 1))]
    >>> [(p.n_positions, p.n_fitting) for p in portions_of(five, 100)]
    [(60, 3), (40, 1)]
    """
    total = sum(len(batch.input) for batch in batches)
    left = total - total // 5
    portions = []
    for batch in batches:
        n_examples = len(batch.input)
        fitting = min(n_examples, left) if total >= _FEWEST_TO_DIVIDE else None
        portions.append(Portion(batch, max(1, positions * n_examples // total), fitting))
        left -= min(n_examples, left)
    return portions


def channels_last(module: nn.Module) -> bool:
    """Return whether the channels are the last dimension of a layer's input, not the second."""
    return isinstance(module, nn.Linear)


def values_at(tensor: Tensor, rows: Tensor, *, last: bool) -> Tensor:
    """Return the channels at some positions, shape ``(n_rows, channels)``.

    Args:
        tensor: Channels in dimension 1, or in the last one.
        rows: Numbers of the positions, counted along the other dimensions.
        last: Whether the channels are the last dimension.

    >>> values_at(torch.arange(8).view(1, 2, 2, 2), torch.tensor([3]), last=False)
    tensor([[3, 7]])
    """
    if last:
        return tensor.reshape(-1, tensor.shape[-1])[rows]
    spatial = tensor.reshape(*tensor.shape[:2], -1)
    return spatial[rows // spatial.shape[2], :, rows % spatial.shape[2]]


def size_without_channels(tensor: Tensor, *, last: bool) -> tuple[int, ...]:
    """Return the shape of a tensor without its channel dimension.

    >>> size_without_channels(torch.zeros(2, 3, 4, 5), last=False)
    (2, 4, 5)
    """
    return tuple(tensor.shape[:-1] if last else (tensor.shape[0], *tensor.shape[2:]))


@contextmanager
def visited(model: nn.Module, paths: Sequence[str], visit: Visit) -> Iterator[None]:
    """Call ``visit`` whenever one of the layers has run; no hook is left on exit."""
    with ExitStack() as stack:
        for path in paths:

            def call(
                _module: nn.Module,
                args: tuple[Any, ...],
                kwargs: dict[str, Any],
                output: Tensor,
                path: str = path,
            ) -> None:
                visit(path, _first(args, kwargs), output)

            module = model.get_submodule(path)
            stack.callback(module.register_forward_hook(call, with_kwargs=True).remove)
        yield


def input_of(model: nn.Module, path: str, example: Tensor) -> Tensor:
    """Return the input of a layer; the rest of the network is not run, and no hook is left.

    Args:
        model: The network.
        path: The layer; it must run when the network does.
        example: Input of the network.

    >>> net = nn.Sequential(nn.Identity(), nn.Linear(1, 1))
    >>> input_of(net, "1", torch.ones(1, 1))
    tensor([[1.]])
    """
    found: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(_first(args, kwargs))
        raise _InputReachedError

    handle = model.get_submodule(path).register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(example)
    except _InputReachedError:
        pass
    finally:
        handle.remove()
    return found[0]


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    value: Tensor = args[0] if args else next(iter(kwargs.values()))
    return value


def sample_output(
    output: Tensor, portion: Portion, *, last: bool, generator: torch.Generator
) -> Sample:
    """Return an output at distinct random positions.

    Args:
        output: Output of a layer.
        portion: What it was computed from.
        last: Whether the channels are the last dimension, not the second.
        generator: Source of the positions.
    """
    size = size_without_channels(output, last=last)
    n_rows = math.prod(size)
    picked = torch.randperm(n_rows, generator=generator)[: portion.n_positions]
    rows = picked.sort().values.to(output.device)
    return Sample(rows, size, portion.held(rows, n_rows), values_at(output, rows, last=last))

"""The layers that read the channels of a group, and what they are given on examples."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn

from coa_compress.artifacts import Batch, ChannelGroup
from coa_compress.profiling.modes import evaluating

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Reader: TypeAlias = (
    nn.Linear
    | nn.Conv1d
    | nn.Conv2d
    | nn.Conv3d
    | nn.ConvTranspose1d
    | nn.ConvTranspose2d
    | nn.ConvTranspose3d
)
"""A layer of which every output sees every input channel."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Second moments of what a layer is given, over positions of the calibration examples.

    Args:
        count: Positions.
        products: Mean product of every two features, float64, on the CPU. The features are the
            input channels, then the constant 1 where the layer can add a constant.
        n_channels: Input channels.
    """

    count: int
    products: Tensor
    n_channels: int


def is_reader(module: nn.Module) -> TypeGuard[Reader]:
    """Return whether a layer mixes all its input channels linearly, position by position.

    >>> is_reader(nn.Conv2d(4, 4, 3)), is_reader(nn.Conv2d(4, 4, 3, groups=2))
    (True, False)
    """
    if isinstance(module, nn.Linear):
        return True
    return isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED)) and module.groups == 1


def reading_dim(module: Reader) -> int:
    """Return the dimension of the weight that reads the input channels."""
    return 0 if isinstance(module, _TRANSPOSED) else 1


def adds_constant(module: Reader) -> bool:
    """Return whether a constant input can be moved into the bias: not where taps skip positions."""
    return module.bias is not None and not isinstance(module, _TRANSPOSED)


def reader_paths(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, dict[str, Tensor]]:
    """Return the readers of each group and where they read its channels.

    Args:
        model: The teacher.
        groups: Its channel groups.

    Returns:
        By group name, by path of the layer: input channels of shape ``(n_channels, repeats)``.
        Readers through grouped convolutions or functions are left out.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, dict[str, Tensor]] = {group.name: {} for group in groups}
    for group in groups:
        for member in group.members:
            path, _, kind = member.tensor.rpartition(".")
            module = modules.get(path)
            if member.role != "input" or kind != "weight" or module is None:
                continue
            if is_reader(module) and member.dim == reading_dim(module):
                found[group.name][path] = member.positions
    return found


def input_moments(
    model: nn.Module, paths: Sequence[str], batches: Sequence[Batch], *, positions: int = 8192
) -> dict[str, Moments]:
    """Return the second moments of the inputs of some layers.

    Args:
        model: The teacher; unchanged.
        paths: Layers for which ``is_reader`` holds.
        batches: Calibration examples.
        positions: About how many positions of each layer are looked at; the same ones every time.

    Returns:
        By path; layers that did not run are left out.

    >>> net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False))
    >>> input_moments(net, ["0"], [Batch(torch.full((1, 2, 4, 4), 3.0))])["0"].products.tolist()
    [[9.0, 9.0], [9.0, 9.0]]
    """
    share = max(1, positions // max(len(batches), 1))
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    n_inputs: dict[str, int] = {}

    def observe(path: str, module: Reader, given: Tensor) -> None:
        rows = _rows(module, given, share)
        if adds_constant(module):
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        rows = rows.double()
        product = (rows.t() @ rows).cpu()
        sums[path] = sums[path] + product if path in sums else product
        counts[path] = counts.get(path, 0) + len(rows)
        n_inputs[path] = module.weight.shape[reading_dim(module)]

    with evaluating(model), _watched(model, paths, observe):
        for batch in batches:
            model(batch.input)
    return {
        path: Moments(counts[path], total / counts[path], n_inputs[path])
        for path, total in sums.items()
    }


@contextmanager
def _watched(model: nn.Module, paths: Sequence[str], observe: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for path in paths:

            def call(
                module: nn.Module,
                args: tuple[Any, ...],
                kwargs: Mapping[str, Any],
                path: str = path,
            ) -> None:
                observe(path, module, args[0] if args else next(iter(kwargs.values())))

            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(call, with_kwargs=True).remove)
        yield


def _rows(module: Reader, given: Tensor, most: int) -> Tensor:
    if isinstance(module, nn.Linear):
        rows = given.reshape(-1, given.shape[-1])
    else:
        unbatched = given.dim() == module.weight.dim() - 1
        batched = given[None] if unbatched else given
        rows = batched.movedim(1, -1).reshape(-1, batched.shape[1])
    if len(rows) <= most:
        return rows
    generator = torch.Generator().manual_seed(len(rows))
    picked = torch.randint(len(rows), (most,), generator=generator)
    return rows[picked.to(rows.device)]

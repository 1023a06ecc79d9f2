"""The cut itself: kept channels in, a new and smaller network of the user's own class out."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from coa_compress.artifacts import ChannelGroup, Cut
from coa_compress.copying import copied
from coa_compress.errors import StructureError
from coa_compress.registry import did_you_mean
from coa_compress.structure.graph import canonical_names
from coa_compress.structure.patches import patches_of_reads, patches_of_sizes
from coa_compress.structure.rebuild import named_tensors, replace_tensors_, set_attributes_
from coa_compress.structure.selection import Selection
from coa_compress.structure.sizes import SizeReads


def checked_channels(
    groups: Collection[ChannelGroup], kept: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return sorted int64 channel numbers on the CPU, by group name.

    Args:
        groups: The groups that may be cut.
        kept: Channel numbers that stay, by group name.

    Raises:
        StructureError: If a group is unknown, or its numbers are empty, double or out of range.

    >>> group = ChannelGroup("stem", 4, ())
    >>> checked_channels([group], {"stem": torch.tensor([2, 0])})
    {'stem': tensor([0, 2])}
    """
    sizes = {group.name: group.n_channels for group in groups}
    checked: dict[str, Tensor] = {}
    for name, channels in kept.items():
        if name not in sizes:
            message = f"no channel group named {name!r}: {did_you_mean(name, sizes)}"
            raise StructureError(message)
        checked[name] = _checked(name, sizes[name], channels)
    return checked


def cut_network(model: nn.Module, selection: Selection, reads: SizeReads | None) -> Cut:
    """Return a copy of a network with only the selected channels.

    Args:
        model: The teacher; it is unchanged.
        selection: The choice of channels.
        reads: Which integers the code of the network reads from attributes; None if it does not
            matter.

    Raises:
        ModelError: If the network cannot be copied.
    """
    student = copied(model)
    slices = selection.tensor_slices()
    every_name = {
        name: slices[first] for name, first in canonical_names(model).items() if first in slices
    }
    patches = [
        *patches_of_sizes(model, selection, every_name),
        *(() if reads is None else patches_of_reads(selection, reads)),
    ]
    tensors = named_tensors(student)
    values = {name: _sliced(tensors[name], own) for name, own in slices.items()}
    replace_tensors_(student, values)
    set_attributes_(student, patches)
    return Cut(student, slices, tuple(patches))


def _sliced(tensor: Tensor, slices: Mapping[int, Tensor]) -> Tensor:
    value = tensor.detach()
    for dim, positions in slices.items():
        value = value.index_select(dim, positions.to(value.device))
    return value.clone()


def _checked(name: str, size: int, channels: Tensor) -> Tensor:
    numbers = torch.as_tensor(channels).detach().cpu()
    whole = numbers.dim() == 1 and not (numbers.is_floating_point() or numbers.dtype == torch.bool)
    if not whole or numbers.numel() == 0:
        shape = f"{numbers.dtype} of shape {tuple(numbers.shape)}"
        message = f"group {name!r} needs a list of channels in [0, {size - 1}] to keep, got {shape}"
        raise StructureError(message)
    ordered = numbers.long().sort().values
    low, high = int(ordered[0]), int(ordered[-1])
    if low < 0 or high >= size:
        wrong = low if low < 0 else high
        message = f"group {name!r} has channels in [0, {size - 1}], got {wrong}"
        raise StructureError(message)
    if bool((ordered[1:] == ordered[:-1]).any()):
        double = int(ordered[1:][ordered[1:] == ordered[:-1]][0])
        message = f"group {name!r} keeps channel {double} twice: give each in [0, {size - 1}] once"
        raise StructureError(message)
    return ordered

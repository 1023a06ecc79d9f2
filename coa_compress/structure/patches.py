"""Attributes of modules that follow the new widths of a student."""

from collections.abc import Mapping, Sequence

from torch import Tensor, fx, nn

from coa_compress.artifacts import AttributePatch
from coa_compress.structure.graph import operator_name, place_of, words
from coa_compress.structure.selection import Selection
from coa_compress.structure.sizes import (
    Key,
    SizeRead,
    SizeReads,
    sized_by_parameters,
)


def patches_of_sizes(
    model: nn.Module, selection: Selection, slices: Mapping[str, Mapping[int, Tensor]]
) -> list[AttributePatch]:
    """Return new values of the sizes that ``torch.nn`` modules keep, such as ``out_channels``.

    Args:
        model: The teacher.
        selection: The choice of channels.
        slices: Kept positions of every cut dimension, by tensor name.
    """
    modules = dict(model.named_modules())
    groups = _new_groups(selection)
    patches: list[AttributePatch] = []
    shaped = _new_channels(selection)
    for path, module in modules.items():
        if sized_by_parameters(module):
            sizes = _sizes(path, module, slices, groups, shaped)
            patches += [
                AttributePatch(path, name, value)
                for name, value in sizes.items()
                if getattr(module, name, None) != value
            ]
    return patches


def patches_of_reads(selection: Selection, reads: SizeReads) -> list[AttributePatch]:
    """Return new values of the attributes that the code of the network reads as sizes.

    Each integer argument of a tensor operator that was computed from attributes must equal what
    the cut makes of it; an attribute is changed when some value satisfies all its uses.

    Args:
        selection: The choice of channels.
        reads: The integer arguments that come from attributes.
    """
    own = [read for read in reads.reads if read.attributes]
    wanted = [(read, _new_value(selection, read)) for read in own]
    if all(new == read.value for read, new in wanted):
        return []
    sizes = {key: selection.size(v, reads.values[key]) for key, v in reads.sources.items()}
    values = {**reads.values, **sizes}
    used = sorted({key for read, _ in wanted for key in read.attributes})
    for key in used:
        alone = [(read, new) for read, new in wanted if read.attributes == {key}]
        values[key] = _solve(key, alone, values)
    for key in used:
        together = [(read, new) for read, new in wanted if key in read.keys]
        values[key] = _solve(key, together, values)
    return _changed(reads.values, {key: values[key] for key in used})


def _solve(
    key: Key, wanted: Sequence[tuple[SizeRead, int | None]], values: Mapping[Key, int]
) -> int:
    """Return the value of an attribute that satisfies its uses; the present one when none does."""
    present = values[key]
    uses = {(id(read.formula), new): (read, new) for read, new in wanted}.values()

    def satisfied(candidate: int) -> bool:
        trial = {**values, key: candidate}
        return all(new is not None and _evaluate(read, trial) == new for read, new in uses)

    if not uses or satisfied(present):
        return present
    return next((value for value in range(1, present) if satisfied(value)), present)


def _evaluate(read: SizeRead, values: Mapping[Key, int]) -> int | None:
    try:
        return read.formula(values)
    except ZeroDivisionError:
        return None


def _new_value(selection: Selection, read: SizeRead) -> int | None:
    """Return what an integer argument must be; None when the calls it may belong to disagree."""
    literals = [literal for node in read.nodes for literal in selection.literals(node)]
    same = [(position, new) for position, old, new in literals if old == read.value]
    exact = {new for position, new in same if position == read.position}
    found = exact if len(exact) == 1 else {new for _, new in same}
    if not found:
        return read.value
    return found.pop() if len(found) == 1 else None


def _changed(before: Mapping[Key, int], after: Mapping[Key, int]) -> list[AttributePatch]:
    patches: list[AttributePatch] = []
    for path, name in dict.fromkeys((k[0], k[1]) for k in after if before[k] != after[k]):
        keys = sorted(key for key in before if key[:2] == (path, name))
        values = tuple(after.get(key, before[key]) for key in keys)
        value = values[0] if keys[0][2] < 0 else values
        patches.append(AttributePatch(path, name, value))
    return patches


def _new_groups(selection: Selection) -> dict[str, int]:
    """Return the new number of groups by the name of the weight of a grouped convolution."""
    found: dict[str, int] = {}
    tensors = selection.labeled.graph.tensors
    for node in selection.labeled.findings.shrinking:
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        if isinstance(weight, fx.Node) and weight.name in tensors:
            found[tensors[weight.name]] = selection.groups(node)
        found.setdefault(place_of(node).module, selection.groups(node))
    return found


def _new_channels(selection: Selection) -> dict[str, tuple[int, ...]]:
    """Return the new output shape of the norms of each module, which may have no parameters."""
    return {
        place_of(node).module: tuple(selection.sizes(node))
        for node in selection.labeled.graph.nodes
        if node.op == "call_function" and operator_name(node) in _NORMS
    }


_NORMS = frozenset(words("batch_norm instance_norm group_norm layer_norm rms_norm")) | {
    "_native_batch_norm_legit_no_training"
}


def _sizes(
    path: str,
    module: nn.Module,
    slices: Mapping[str, Mapping[int, Tensor]],
    groups: Mapping[str, int],
    shaped: Mapping[str, tuple[int, ...]],
) -> dict[str, int | tuple[int, ...]]:
    weight = _new_shape(path, module, slices)
    match module:
        case nn.modules.conv._ConvNd() if weight:
            key = f"{path}.weight" if path else "weight"
            count = groups.get(key, groups.get(path, module.groups))
            ends = (weight[0], weight[1] * count)
            inputs, outputs = ends if module.transposed else ends[::-1]
            return {"in_channels": inputs, "out_channels": outputs, "groups": count}
        case nn.Linear() if weight:
            return {"in_features": weight[1], "out_features": weight[0]}
        case nn.PReLU() if weight:
            return {"num_parameters": weight[0]}
    if path not in shaped:
        return {}
    return _norm_sizes(module, shaped[path])


def _norm_sizes(module: nn.Module, shape: tuple[int, ...]) -> dict[str, int | tuple[int, ...]]:
    match module:
        case nn.LayerNorm() | nn.RMSNorm():
            return {"normalized_shape": shape[len(shape) - len(module.normalized_shape) :]}
        case nn.GroupNorm():
            return {"num_channels": shape[1]}
        case nn.modules.batchnorm._NormBase():
            return {"num_features": shape[1]}
    return {}


def _new_shape(
    path: str, module: nn.Module, slices: Mapping[str, Mapping[int, Tensor]]
) -> tuple[int, ...]:
    """Return the new shape of a module's weight; empty where it has none."""
    name = weight_name(module)
    if name is None:
        return ()
    cut = slices.get(f"{path}.{name}" if path else name, {})
    return tuple(
        len(cut[dim]) if dim in cut else int(size)
        for dim, size in enumerate(module.get_parameter(name).shape)
    )


def weight_name(module: nn.Module) -> str | None:
    """Return the name of the parameter that has the shape of a layer's weight, or None.

    A weight or spectral norm keeps what the weight is computed from under a name of its own.

    >>> layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 3))
    >>> weight_name(nn.Linear(2, 3)), weight_name(layer), weight_name(nn.ReLU())
    ('weight', 'parametrizations.weight.original', None)
    """
    own = dict(module.named_parameters(remove_duplicate=False))
    return next((name for name in _WEIGHTS if name in own), None)


_WEIGHTS = (
    *("weight", "weight_v", "weight_orig"),
    *("parametrizations.weight.original1", "parametrizations.weight.original"),
)

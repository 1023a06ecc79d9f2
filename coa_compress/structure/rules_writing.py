"""Label rules of operators that write into a part of a tensor."""

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from coa_compress.structure.calls import Call, Rule, UnsupportedCallError, axis
from coa_compress.structure.graph import words
from coa_compress.structure.labels import Dims, Vector
from coa_compress.structure.rules_movement import followed_part
from coa_compress.structure.rules_pointwise import broadcast


def written_position(call: Call) -> tuple[Dims, ...]:
    """Freeze a dimension of which one position is written; unite the others."""
    along = axis(call.integer("dim"), len(call.out_shape))
    call.space.freeze(call.dims(call.tensor("self"))[along])
    return (tuple(_around(call, call.tensor("src"), along, 0)),)


def written_slice(call: Call) -> tuple[Dims, ...]:
    """Unite what is written with the part that it replaces, where that can follow a width."""
    source = call.tensor("src")
    along = axis(call.integer("dim"), len(call.out_shape))
    result = _around(call, source, along, 1)
    vector, piece = followed_part(call, along, call.shape(source)[along])
    met = call.space.meet([piece, call.dims(source)[along]])
    if met is None:
        # nothing but this part can be told apart from what is fixed
        call.space.freeze(vector)
    result[along] = call.space.canonical(vector)
    return (tuple(result),)


def written_positions(call: Call) -> tuple[Dims, ...]:
    """Freeze the one dimension whose listed positions are written; unite the others.

    Where a mask of the full shape chooses what one number is written to, nothing is frozen.
    """
    operand, values = call.tensor("self"), call.tensor("values")
    along, index = _only_index(call)
    rank = len(call.shape(index))
    if index.meta["val"].dtype == torch.bool:
        if call.shape(index) != call.shape(operand) or max(call.shape(values), default=1) > 1:
            raise UnsupportedCallError(call.name)
        return (broadcast(call, [operand, index]),)
    call.space.freeze(call.dims(operand)[along])
    behind = len(call.out_shape) - 1 - along
    own = call.dims(values)
    for vector in own[max(0, len(own) - behind - rank) : max(0, len(own) - behind)]:
        call.space.freeze(vector)
    return (tuple(_around(call, values, along, rank)),)


def _around(call: Call, source: fx.Node, along: int, rank: int) -> list[Vector | None]:
    """Unite all dimensions but one of a tensor with those of what is written into it.

    Args:
        call: The call.
        source: What is written; it is broadcast to the place.
        along: The dimension that the place is a part of.
        rank: How many dimensions of the source take its place.
    """
    operand = call.tensor("self")
    result, shape, written = call.dims(operand), call.shape(operand), call.shape(source)
    offset = len(shape) - 1 + rank - len(written)
    for dim, size in enumerate(shape):
        own = dim - offset + (rank - 1 if dim > along else 0)
        if dim != along and size > 1 and own >= 0 and written[own] == size:
            result[dim] = call.space.meet([result[dim], call.dims(source)[own]])
    result[along] = None
    return result


def _only_index(call: Call) -> tuple[int, fx.Node]:
    """Return the one dimension that is indexed, and the index."""
    indices = call.arguments["indices"]
    if not isinstance(indices, Sequence):
        raise UnsupportedCallError(call.name)
    used = [(dim, index) for dim, index in enumerate(indices) if isinstance(index, fx.Node)]
    if len(used) != 1:
        raise UnsupportedCallError(call.name)
    return used[0]


WRITING: Mapping[str, Rule] = {
    "select_scatter": written_position,
    "slice_scatter": written_slice,
    **dict.fromkeys(words("index_put index_put_"), written_positions),
}
"""Rules of operators that write into a part of a tensor."""

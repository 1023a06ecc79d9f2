"""Label rules of convolutions and matrix products, which unite what they contract."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_letters

import numpy as np
from torch import fx

from coa_compress.structure.calls import (
    Call,
    Contraction,
    Rule,
    UnsupportedCallError,
    Where,
    axis,
)
from coa_compress.structure.graph import words
from coa_compress.structure.labels import Dims, Vector


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the channels of a convolution are.

    Args:
        spatial: Number of spatial dimensions.
        channel: Dimension of the channels in input and output.
        groups: Number of groups.
        transposed: Whether the weight is laid out ``(in, out / groups, ...)``.
    """

    spatial: int
    channel: int
    groups: int
    transposed: bool


def convolution(call: Call) -> tuple[Dims, ...]:
    """Unite input channels with the weight's; return its output channels.

    In a grouped convolution either whole groups are cut (depthwise ones, and those with more
    groups than channels in a group) or the same positions of every group.
    """
    operand, weight = call.tensor("input"), call.tensor("weight")
    layout = _layout(call, operand, weight)
    x, w = call.dims(operand), call.dims(weight)
    for vector in (*x[layout.channel + 1 :], *w[2:]):
        call.space.freeze(vector)
    x, w = call.dims(operand), call.dims(weight)
    if layout.groups == 1:
        out = _dense(call, x[layout.channel], w, transposed=layout.transposed)
    elif _cuts_groups(call.shape(weight), layout):
        out = _whole_groups(call, operand, weight, layout)
    else:
        out = _within_groups(call, operand, weight, layout)
    out = _with_bias(call, out, call.out_shape[layout.channel])
    _record_convolution(call, operand, weight, layout)
    batch = call.dims(operand)[: layout.channel]
    return ((*batch, out, *([None] * layout.spatial)),)


def linear(call: Call) -> tuple[Dims, ...]:
    """Unite the last dimension with the weight's inputs; return the weight's outputs."""
    operand, weight = call.tensor("input"), call.tensor("weight")
    if len(call.shape(weight)) != 2:
        raise UnsupportedCallError(call.name)
    _unite(call, [(operand, -1), (weight, 1)])
    out = _with_bias(call, call.dims(weight)[0], call.out_shape[-1])
    pairs = [*_labeled(call, operand), (call.dims(weight)[0], call.shape(weight)[0])]
    _record(call, pairs, weight=weight if weight in call.static else None, writes=0, reads=1)
    call.mix("zero", _where(call, "input", operand, -1))
    if weight not in call.static:
        call.restrict(call.dims(operand)[-1])
    return ((*call.dims(operand)[:-1], out),)


def matrix_product(call: Call) -> tuple[Dims, ...]:
    """Unite the contracted dimensions of two stacks of matrices."""
    names = ("mat1", "mat2") if "mat1" in call.arguments else ("self", "mat2")
    names = ("self", "other") if "other" in call.arguments else names
    names = ("batch1", "batch2") if "batch1" in call.arguments else names
    left, right = call.tensor(names[0]), call.tensor(names[1])
    if min(len(call.shape(left)), len(call.shape(right))) < 2:
        raise UnsupportedCallError(call.name)
    _unite(call, [(left, -1), (right, -2)])
    rank = len(call.out_shape)
    batch = [_batch(call, [left, right], dim) for dim in range(rank - 2)]
    rows, columns = call.dims(left)[-2], call.dims(right)[-1]
    shape = call.out_shape
    pairs = [
        *zip(batch, shape[:-2], strict=True),
        (rows, shape[-2]),
        (call.dims(left)[-1], call.shape(left)[-1]),
        (columns, shape[-1]),
    ]
    weight, writes, reads = _weight_of(call, left, right)
    _record(call, pairs, weight=weight, writes=writes, reads=reads)
    call.mix("zero", _where(call, names[0], left, -1))
    if left not in call.static and right not in call.static:
        call.restrict(call.dims(left)[-1])
    return ((*batch, rows, columns),)


def vector_product(call: Call) -> tuple[Dims, ...]:
    """Unite a vector with the last dimension of what it is multiplied by, matrix or vector."""
    left, right = (call.tensor(name) for name in ("self", _second(call)))
    _unite(call, [(left, -1), (right, 0)])
    _record(call, _labeled(call, left))
    call.mix("zero", _where(call, "self", left, -1))
    if left not in call.static and right not in call.static:
        call.restrict(call.dims(left)[-1])
    return (tuple(call.dims(left)[:-1]),)


def _second(call: Call) -> str:
    return next(name for name in ("vec", "tensor", "other") if name in call.arguments)


def added_matrix_product(call: Call) -> tuple[Dims, ...]:
    """Unite the product of two matrices with what is added to it."""
    (product,) = matrix_product(call)
    added = call.tensor("self")
    result = list(product)
    offset = len(result) - len(call.shape(added))
    for dim, size in enumerate(call.shape(added)):
        if size > 1:
            met = call.space.meet([result[dim + offset], call.dims(added)[dim]])
            result[dim + offset] = met
    return (tuple(result),)


def einsum(call: Call) -> tuple[Dims, ...]:
    """Unite the dimensions that share a letter."""
    terms, out, operands = _equation(call)
    letters: dict[str, list[Vector | None]] = {}
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, (vector, size) in zip(term, _labeled(call, operand), strict=True):
            if size > 1:
                letters.setdefault(letter, []).append(vector)
                sizes[letter] = size
    met = {letter: call.space.meet(vectors) for letter, vectors in letters.items()}
    contracted = [letter for letter in met if letter not in out]
    static = [node for node in operands if node in call.static]
    weight = static[0] if len(operands) == 2 and len(static) == 1 else None
    term = terms[operands.index(weight)] if weight is not None else ""
    if contracted and len(terms) > 1:
        _record(
            call,
            [(met[letter], size) for letter, size in sizes.items()],
            weight=weight,
            writes=next((i for i, c in enumerate(term) if c in out and _only(c, terms)), -1),
            reads=next((i for i, c in enumerate(term) if c in contracted), -1),
        )
    where: list[Where] = []
    for letter in contracted:
        first = next(i for i, t in enumerate(terms) if letter in t)
        if met[letter] is not None:
            where.append(("tensors", first, terms[first].index(letter)))
        if weight is None:
            call.restrict(met[letter])
    call.mix("zero", where)
    return (tuple(call.space.canonical(met.get(letter)) for letter in out),)


def attention(call: Call) -> tuple[Dims, ...]:
    """Unite what scaled dot-product attention contracts.

    Without an explicit scale it divides by the root of the head width, which a cut would change:
    the head width is frozen then, unless the call is rewritten with the scale that it has.
    """
    query, key, value = (call.tensor(name) for name in ("query", "key", "value"))
    mask = call.operand("attn_mask")
    if call.arguments.get("enable_gqa") or call.arguments.get("dropout_p"):
        raise UnsupportedCallError(call.name)
    if call.arguments.get("scale") is None and not call.rewritten:
        call.space.freeze(call.dims(query)[-1])
    _unite(call, [(query, -1), (key, -1)])
    _unite(call, [(key, -2), (value, -2)])
    rank, stacked = len(call.out_shape), [query, key, value]
    if mask is not None:
        stacked.append(mask)
        _unite(call, [(mask, -2), (query, -2)])
        _unite(call, [(mask, -1), (key, -2)])
    batch = [_batch(call, stacked, dim) for dim in range(rank - 2)]
    rows, columns = call.dims(query)[-2], call.dims(value)[-1]
    length = (call.dims(key)[-2], call.shape(key)[-2])
    shared = [*zip(batch, call.out_shape[:-2], strict=True), (rows, call.out_shape[-2]), length]
    _record(call, [*shared, (call.dims(query)[-1], call.shape(query)[-1])])
    _record(call, [*shared, (columns, call.out_shape[-1])])
    call.restrict(call.dims(query)[-1])
    if length[0] is not None:
        # the softmax runs over cut positions, which zeroing one operand does not remove
        call.space.freeze(length[0])
    call.mix("zero", _where(call, "query", query, -1))
    return (tuple(call.space.canonical(v) for v in (*batch, rows, columns)),)


def _layout(call: Call, operand: fx.Node, weight: fx.Node) -> _Layout:
    spatial = len(call.shape(weight)) - 2
    transposed = "transpose" in call.name or bool(call.arguments.get("transposed"))
    channel = len(call.shape(operand)) - spatial - 1
    return _Layout(spatial, channel, call.integer("groups", 1), transposed)


def _cuts_groups(weight: Sequence[int], layout: _Layout) -> bool:
    first = weight[0] // layout.groups
    least = min(first, weight[1])
    return layout.transposed or least == 1 or layout.groups > least


def _dense(
    call: Call, x: Vector | None, w: Sequence[Vector | None], *, transposed: bool
) -> Vector | None:
    reads, writes = (w[0], w[1]) if transposed else (w[1], w[0])
    if call.shape(call.tensor("weight"))[0 if transposed else 1] > 1:
        call.space.meet([x, reads])
    return call.space.canonical(writes)


def _whole_groups(call: Call, operand: fx.Node, weight: fx.Node, layout: _Layout) -> Vector | None:
    space, groups = call.space, layout.groups
    space.freeze(call.dims(weight)[1])
    units: list[Vector | None] = []
    for vector in (call.dims(operand)[layout.channel], call.dims(weight)[0]):
        units.extend([None] if vector is None else vector.reshape(groups, -1).T)
    unit = space.meet(units)
    call.findings.shrinking[call.node] = groups
    if unit is None:
        return None
    return np.repeat(unit, call.out_shape[layout.channel] // groups)


def _within_groups(call: Call, operand: fx.Node, weight: fx.Node, layout: _Layout) -> Vector | None:
    space, groups = call.space, layout.groups
    vector, reads = call.dims(operand)[layout.channel], call.dims(weight)[1]
    parts: list[Vector | None] = [None] if vector is None else list(vector.reshape(groups, -1))
    space.meet([*parts, reads])
    return space.tie(call.dims(weight)[0], call.out_shape[layout.channel] // groups)


def _with_bias(call: Call, out: Vector | None, size: int) -> Vector | None:
    bias = call.operand("bias")
    if bias is None or size == 1:
        return out if size > 1 else None
    return call.space.meet([out, call.dims(bias)[0]])


def _record_convolution(call: Call, operand: fx.Node, weight: fx.Node, layout: _Layout) -> None:
    batch = list(zip(call.dims(operand), call.shape(operand), strict=True))[: layout.channel]
    moved = call.shape(operand) if layout.transposed else call.out_shape
    fixed: list[tuple[Vector | None, int]] = [(None, s) for s in moved[layout.channel + 1 :]]
    pairs = [*batch, *fixed, *_labeled(call, weight)]
    writes = 1 if layout.transposed and layout.groups == 1 else 0
    _record(
        call,
        pairs,
        weight=weight if weight in call.static else None,
        writes=writes,
        reads=1 - writes,
    )
    if layout.groups == 1:
        call.mix("zero", _where(call, "input", operand, layout.channel))
        if weight not in call.static:
            call.restrict(call.dims(operand)[layout.channel])
    elif call.node not in call.findings.shrinking:
        call.mix("zero", _where(call, "input", operand, layout.channel))


def _record(
    call: Call,
    pairs: Sequence[tuple[Vector | None, int]],
    *,
    weight: fx.Node | None = None,
    writes: int = -1,
    reads: int = -1,
) -> None:
    fixed = math.prod(size for vector, size in pairs if vector is None)
    extents = tuple(vector for vector, _ in pairs if vector is not None)
    found = Contraction(call.node, fixed, extents, weight, writes, reads)
    call.findings.contractions.append(found)


def _labeled(call: Call, operand: fx.Node) -> list[tuple[Vector | None, int]]:
    return list(zip(call.dims(operand), call.shape(operand), strict=True))


def _unite(call: Call, places: Sequence[tuple[fx.Node, int]]) -> None:
    node, dim = places[0]
    if call.shape(node)[dim] > 1:
        call.space.meet([call.dims(node)[dim] for node, dim in places])


def _batch(call: Call, operands: Sequence[fx.Node], dim: int) -> Vector | None:
    size, rank = call.out_shape[dim], len(call.out_shape)
    aligned = []
    for operand in operands:
        own = dim - rank + len(call.shape(operand))
        if size > 1 and own >= 0 and call.shape(operand)[own] == size:
            aligned.append(call.dims(operand)[own])
    return call.space.meet(aligned)


def _where(call: Call, name: str, operand: fx.Node, dim: int) -> list[Where]:
    dim = axis(dim, len(call.shape(operand)))
    return [(name, None, dim)] if call.dims(operand)[dim] is not None else []


def _weight_of(call: Call, left: fx.Node, right: fx.Node) -> tuple[fx.Node | None, int, int]:
    """Return the operand that depends on parameters alone, and its writing and reading ends."""
    if right in call.static and left not in call.static:
        rank = len(call.shape(right))
        return right, rank - 1, rank - 2
    if left in call.static and right not in call.static:
        rank = len(call.shape(left))
        return left, rank - 2, rank - 1
    return None, -1, -1


def _equation(call: Call) -> tuple[list[str], str, list[fx.Node]]:
    """Return the letters of each operand and of the result, those that are left out spelled out."""
    left, arrow, out = str(call.arguments["equation"]).replace(" ", "").partition("->")
    terms, operands = left.split(","), call.operands("tensors")
    if not arrow:
        once = sorted(letter for letter in set(left) - set(".,") if left.count(letter) == 1)
        out = "..." * ("." in left) + "".join(once)
    missing = [
        len(call.shape(operand)) - len(term) + 3 if "..." in term else 0
        for term, operand in zip(terms, operands, strict=True)
    ]
    unused = [letter for letter in ascii_letters if letter not in left]
    implied = "".join(unused[: max(missing)])
    terms = [
        term.replace("...", implied[len(implied) - count :])
        for term, count in zip(terms, missing, strict=True)
    ]
    if any(len(set(term)) != len(term) for term in terms):
        raise UnsupportedCallError(call.name)
    return terms, out.replace("...", implied), operands


def _only(letter: str, terms: Sequence[str]) -> bool:
    return sum(letter in term for term in terms) == 1


CONTRACTION: Mapping[str, Rule] = {
    **dict.fromkeys(
        words(
            "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d "
            "_convolution"
        ),
        convolution,
    ),
    "linear": linear,
    **dict.fromkeys(words("matmul bmm mm"), matrix_product),
    **dict.fromkeys(words("addmm baddbmm"), added_matrix_product),
    **dict.fromkeys(words("mv dot vdot"), vector_product),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}
"""Rules of convolutions and matrix products."""

"""Label rules of operators that work position by position, and of those that make tensors."""

from collections.abc import Mapping

from torch import fx

from coa_compress.structure.calls import Call, Rule, axis
from coa_compress.structure.graph import words
from coa_compress.structure.labels import Dims, Vector


def pointwise(call: Call) -> tuple[Dims, ...]:
    """Unite the labels of operands at the same position; a size-1 broadcast couples nothing."""
    return (broadcast(call, call.inputs),)


def broadcast(call: Call, operands: list[fx.Node]) -> Dims:
    """Return the labels of operands that are broadcast to the output shape."""
    out = call.out_shape
    result: list[Vector | None] = []
    for dim, size in enumerate(out):
        aligned = []
        for operand in operands:
            shape = call.shape(operand)
            own = dim - len(out) + len(shape)
            if size > 1 and own >= 0 and shape[own] == size:
                aligned.append(call.dims(operand)[own])
        result.append(call.space.meet(aligned))
    return tuple(result)


def uniform(call: Call) -> tuple[Dims, ...]:
    """Give fresh labels to a tensor of equal values: any channel of it may go."""
    shape = call.out_shape
    return (tuple(call.space.fresh(size) if size > 1 else None for size in shape),)


def alike(call: Call) -> tuple[Dims, ...]:
    """Return the labels of the tensor that gives the shape."""
    return (tuple(call.dims(call.tensor("self"))),)


def expand(call: Call) -> tuple[Dims, ...]:
    """Give fresh labels to dimensions that repeat a single position; pass on the others."""
    operand = call.tensor("self")
    dims, shape, out = call.dims(operand), call.shape(operand), call.out_shape
    offset = len(out) - len(shape)
    result: list[Vector | None] = []
    for dim, size in enumerate(out):
        if dim >= offset and shape[dim - offset] == size:
            result.append(dims[dim - offset])
        else:
            result.append(call.space.fresh(size) if size > 1 else None)
    return (tuple(result),)


def expand_as(call: Call) -> tuple[Dims, ...]:
    """Unite what is expanded with what it is expanded to."""
    target = call.dims(call.tensor("other"))
    (own,) = expand(call)
    for mine, theirs, size in zip(own, target, call.out_shape, strict=True):
        if size > 1:
            call.space.meet([mine, theirs])
    return (tuple(call.space.canonical(vector) for vector in own),)


def parametric_relu(call: Call) -> tuple[Dims, ...]:
    """Unite the channels of the input with those of a slope for each channel."""
    operand, weight = call.tensor("self"), call.tensor("weight")
    dims = call.dims(operand)
    if call.shape(weight) != () and call.shape(weight)[0] > 1:
        dims[1] = call.space.meet([dims[1], call.dims(weight)[0]])
    return (tuple(dims),)


def gated_half(call: Call) -> tuple[Dims, ...]:
    """Unite the two halves of a gated linear unit."""
    operand = call.tensor("self")
    dims = call.dims(operand)
    dim = axis(call.integer("dim", -1), len(dims))
    half = call.shape(operand)[dim] // 2
    tied = call.space.tie(dims[dim], half)
    dims[dim] = call.space.canonical(None if tied is None or half < 2 else tied[:half])
    if half < 2:
        call.space.freeze(tied)
    return (tuple(dims),)


_POINTWISE = words(
    """
    add sub mul div neg relu sigmoid gelu pow sqrt rsqrt rsub clamp_min clamp_max clamp leaky_relu
    tanh silu mish hardtanh hardsigmoid hardswish exp log abs gt lt ge le eq ne logical_and
    logical_or logical_not alias clone copy _to_copy to contiguous detach elu selu celu softplus
    softsign where maximum minimum reciprocal square sin cos erf relu6 dropout feature_dropout
    lift_fresh_copy lift_fresh type_as lerp addcmul addcdiv masked_fill float double half
    true_divide multiply subtract divide logsigmoid log_sigmoid hardshrink softshrink tanhshrink
    threshold nan_to_num round floor ceil sign real imag conj resolve_conj complex polar
    angle positive negative exp2 expm1 log1p rrelu data dropout_ clip absolute fill zero
    """
)

POINTWISE: Mapping[str, Rule] = {
    **dict.fromkeys(_POINTWISE, pointwise),
    **dict.fromkeys(words("copy_ masked_fill_ fill_ zero_"), pointwise),
    **dict.fromkeys(
        words("zeros ones full empty new_zeros new_ones new_full new_empty scalar_tensor"),
        uniform,
    ),
    **dict.fromkeys(words("zeros_like ones_like full_like empty_like"), alike),
    "expand": expand,
    "expand_as": expand_as,
    "prelu": parametric_relu,
    "_prelu_kernel": pointwise,
    "glu": gated_half,
}
"""Rules of pointwise operators and of operators that fill a tensor."""

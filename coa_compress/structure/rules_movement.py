"""Label rules of operators that move positions: the operator is applied to the labels."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from coa_compress.structure.calls import Call, Rule, UnsupportedCallError, axis
from coa_compress.structure.graph import words
from coa_compress.structure.labels import Dims, Vector, move

Move = Callable[[Tensor], Tensor]


def moved_by(call: Call, operate: Move, *, keep: int | None = None) -> tuple[Dims, ...]:
    """Return the labels of the first operand after a movement."""
    operand = call.inputs[0]
    dims, shape = call.dims(operand), call.shape(operand)
    return (move(call.space, dims, shape, operate, keep=keep),)


def reshaped(call: Call) -> tuple[Dims, ...]:
    """Move labels to the output shape in row-major order."""
    out = call.out_shape
    return moved_by(call, lambda labels: labels.reshape(out))


def reshaped_as(call: Call) -> tuple[Dims, ...]:
    """Move labels to the shape of another tensor, and unite them with its labels."""
    other = call.dims(call.tensor("other"))
    (dims,) = reshaped(call)
    sizes = call.out_shape
    met = [
        call.space.meet([a, b]) if s > 1 else None
        for a, b, s in zip(dims, other, sizes, strict=True)
    ]
    return (tuple(met),)


def replayed(call: Call) -> tuple[Dims, ...]:
    """Run the very operator on the labels."""
    return moved_by(call, _replay(call))


def shuffled_pixels(call: Call) -> tuple[Dims, ...]:
    """Tie the channels that a pixel shuffle puts on one output channel."""
    return moved_by(call, _replay(call), keep=len(call.out_shape) - 3)


def repeated(call: Call) -> tuple[Dims, ...]:
    """Tile labels; a dimension of size 1 gets fresh labels, as it is uniform then."""
    operand = call.inputs[0]
    offset = len(call.out_shape) - len(call.shape(operand))
    shape = (1,) * offset + call.shape(operand)
    (dims,) = replayed(call)
    return (
        tuple(
            call.space.fresh(size) if before == 1 and size > 1 else vector
            for vector, before, size in zip(dims, shape, call.out_shape, strict=True)
        ),
    )


def rolled(call: Call) -> tuple[Dims, ...]:
    """Freeze what is rolled: a shift by a constant depends on the width."""
    operand = call.tensor("self")
    dims = call.dims(operand)
    rolled_dims = call.integers("dims") or list(range(len(dims)))
    for dim in rolled_dims:
        dim = axis(dim, len(dims))
        call.space.freeze(dims[dim])
    return (tuple(call.space.canonical(vector) for vector in dims),)


def concatenated(call: Call) -> tuple[Dims, ...]:
    """Put labels one after the other along one dimension; unite them along the others."""
    operands = [node for node in call.operands("tensors") if call.shape(node) != (0,)]
    rank = len(call.out_shape)
    along = axis(call.integer("dim"), rank)
    result: list[Vector | None] = []
    for dim, size in enumerate(call.out_shape):
        if dim == along:
            parts = [_filled(call, node, dim) for node in operands]
            result.append(call.space.canonical(np.concatenate(parts)))
        else:
            vectors = [call.dims(node)[dim] for node in operands]
            result.append(call.space.meet(vectors) if size > 1 else None)
    return (tuple(result),)


def stacked(call: Call) -> tuple[Dims, ...]:
    """Unite the labels of what is stacked along a new dimension."""
    operands = call.operands("tensors")
    along = axis(call.integer("dim"), len(call.out_shape))
    rank = len(call.out_shape) - 1
    united = [call.space.meet([call.dims(node)[d] for node in operands]) for d in range(rank)]
    return ((*united[:along], None, *united[along:]),)


def split(call: Call) -> tuple[Dims, ...]:
    """Cut labels into pieces: equal ones are tied, others must be able to follow.

    Code that splits into equal pieces computes the width anew or keeps the number of pieces, so
    that equal counts must stay in every piece. Unequal widths have to come from attributes.
    """
    operand = call.inputs[0]
    dims = call.dims(operand)
    along = axis(call.integer("dim"), len(dims))
    widths = [shape[along] for shape in call.out_shapes]
    vector = dims[along]
    if vector is not None and len(widths) > 1:
        if len(set(widths)) == 1:
            vector = call.space.tie(vector, widths[0])
        elif not all(call.can_follow(width) for width in widths):
            call.space.freeze(vector)
            vector = None
    return _pieces(call, dims, along, vector, widths)


def sliced(call: Call) -> tuple[Dims, ...]:
    """Take a part: halves, thirds ... are tied, other parts must be able to follow."""
    operand = call.tensor("self")
    dims = call.dims(operand)
    along = axis(call.integer("dim"), len(dims))
    width = call.out_shape[along]
    if dims[along] is None or width == call.shape(operand)[along]:
        return (tuple(dims),)
    dims[along] = followed_part(call, along, width)[1]
    return (tuple(call.space.canonical(labels) for labels in dims),)


def followed_part(call: Call, along: int, width: int) -> tuple[Vector | None, Vector | None]:
    """Return the labels of a dimension and of a part of it, frozen if it cannot follow a width.

    Args:
        call: A call that takes a part of its operand ``self``, or writes into it.
        along: The dimension.
        width: How many positions the part has.
    """
    operand = call.tensor("self")
    vector, size = call.dims(operand)[along], call.shape(operand)[along]
    if vector is None or width == size:
        return vector, vector
    start = min(_start(call, size), size)
    bounds = [bound for bound in (start, start + width) if 0 < bound < size]
    if call.integer("step", 1) != 1 or width == 0:
        followed = False
    elif all(call.can_follow(bound) or call.can_follow(bound - size) for bound in bounds):
        followed = True
    else:
        followed = size % width == 0 and start % width == 0
        if followed:
            vector = call.space.tie(vector, width)
    if not followed or vector is None or width < 2:
        call.space.freeze(vector)
        return None, None
    return call.space.canonical(vector), call.space.canonical(vector[start : start + width])


def selected(call: Call) -> tuple[Dims, ...]:
    """Freeze a dimension that one position is taken from."""
    dims = call.dims(call.tensor("self"))
    along = axis(call.integer("dim"), len(dims))
    call.space.freeze(dims[along])
    rest = dims[:along] + dims[along + 1 :]
    return (tuple(call.space.canonical(vector) for vector in rest),)


def unbound(call: Call) -> tuple[Dims, ...]:
    """Freeze a dimension that every position is taken from."""
    (rest,) = selected(call)
    return (rest,) * len(call.out_shapes)


def indexed(call: Call) -> tuple[Dims, ...]:
    """Freeze the one dimension that a tensor of positions takes from; pass on the others."""
    operand = call.tensor("self")
    dims = call.dims(operand)
    indices = call.arguments["indices"]
    if not isinstance(indices, Sequence):
        raise UnsupportedCallError(call.name)
    used = [dim for dim, index in enumerate(indices) if index is not None]
    index = indices[used[0]] if used else None
    if len(used) != 1 or not isinstance(index, fx.Node) or index.meta["val"].dtype == torch.bool:
        raise UnsupportedCallError(call.name)
    call.space.freeze(dims[used[0]])
    new: list[Vector | None] = [None] * len(call.shape(index))
    rest = [*dims[: used[0]], *new, *dims[used[0] + 1 :]]
    return (tuple(call.space.canonical(vector) for vector in rest),)


def padded(call: Call) -> tuple[Dims, ...]:
    """Freeze the dimensions that are padded."""
    dims = call.dims(call.tensor("self"))
    pads = call.integers("pad" if "pad" in call.arguments else "padding")
    for pair in range(len(pads) // 2):
        if pads[2 * pair] or pads[2 * pair + 1]:
            along = len(dims) - 1 - pair
            call.space.freeze(dims[along])
            dims[along] = None
    return (tuple(dims),)


def resampled(call: Call) -> tuple[Dims, ...]:
    """Freeze the spatial dimensions of pooling and interpolation; pass on channels."""
    dims = call.dims(call.inputs[0])
    spatial = next(count for count in (1, 2, 3) if f"{count}d" in call.name)
    for vector in dims[-spatial:]:
        call.space.freeze(vector)
    passed = (*dims[:-spatial], *([None] * spatial))
    return (tuple(passed),) * len(call.out_shapes)


def unpooled(call: Call) -> tuple[Dims, ...]:
    """Unite the channels of what is put back with those of the places that it goes to."""
    (passed,) = resampled(call)
    image, places = call.tensor("self"), call.tensor("indices")
    if call.shape(image)[-3] > 1:
        met = call.space.meet([call.dims(image)[-3], call.dims(places)[-3]])
        passed = (*passed[:-3], met, *passed[-2:])
    return (passed,)


def sampled(call: Call) -> tuple[Dims, ...]:
    """Pass on the channels of an image that is sampled on a grid; the grid is frozen."""
    image, grid = call.tensor("input"), call.tensor("grid")
    dims = call.dims(image)
    for vector in (*dims[2:], *call.dims(grid)):
        call.space.freeze(vector)
    return ((call.space.canonical(dims[0]), dims[1], *([None] * (len(dims) - 2))),)


def unfolded_patches(call: Call) -> tuple[Dims, ...]:
    """Repeat each channel for every tap of a patch."""
    operand = call.inputs[0]
    dims = call.dims(operand)
    for vector in dims[-2:]:
        call.space.freeze(vector)
    taps = call.out_shape[-2] // call.shape(operand)[-3]
    channels = None if dims[-3] is None else np.repeat(dims[-3], taps)
    return ((*dims[:-3], channels, None),)


def folded_patches(call: Call) -> tuple[Dims, ...]:
    """Tie the taps of each channel."""
    operand = call.inputs[0]
    dims = call.dims(operand)
    call.space.freeze(dims[-1])
    channels, taps = None, call.shape(operand)[-2] // call.out_shape[-3]
    if dims[-2] is not None:
        channels = call.space.meet(list(dims[-2].reshape(-1, taps).T))
    return ((*dims[:-2], channels, None, None),)


def windowed(call: Call) -> tuple[Dims, ...]:
    """Freeze the dimension that sliding windows are taken along."""
    dims = call.dims(call.tensor("self"))
    along = axis(call.integer("dimension"), len(dims))
    call.space.freeze(dims[along])
    dims[along] = None
    return ((*dims, None),)


def _replay(call: Call) -> Move:
    target, args, kwargs = call.node.target, call.node.args[1:], dict(call.node.kwargs)
    if not callable(target) or any(isinstance(value, fx.Node) for value in args):
        raise UnsupportedCallError(call.name)

    def operate(labels: Tensor) -> Tensor:
        result: Tensor = target(labels, *args, **kwargs)
        return result

    return operate


def _filled(call: Call, node: fx.Node, dim: int) -> Vector:
    vector = call.dims(node)[dim]
    return np.zeros(call.shape(node)[dim], dtype=np.int64) if vector is None else vector


def _pieces(
    call: Call, dims: list[Vector | None], along: int, vector: Vector | None, widths: list[int]
) -> tuple[Dims, ...]:
    pieces: list[Dims] = []
    start = 0
    for width in widths:
        piece = None if vector is None else vector[start : start + width]
        start += width
        if width < 2:
            call.space.freeze(piece)
        pieces.append((*dims[:along], call.space.canonical(piece), *dims[along + 1 :]))
    return tuple(tuple(call.space.canonical(labels) for labels in piece) for piece in pieces)


def _start(call: Call, size: int) -> int:
    start = call.integer("start")
    return max(start + size, 0) if start < 0 else start


MOVEMENT: Mapping[str, Rule] = {
    **dict.fromkeys(
        words("view reshape _unsafe_view view_copy _reshape_alias flatten unflatten"),
        reshaped,
    ),
    **dict.fromkeys(words("view_as reshape_as"), reshaped_as),
    **dict.fromkeys(
        words(
            "permute transpose t numpy_T mT unsqueeze squeeze pixel_unshuffle flip movedim "
            "moveaxis swapaxes swapdims channel_shuffle native_channel_shuffle permute_copy "
            "transpose_copy unsqueeze_copy squeeze_copy repeat_interleave adjoint"
        ),
        replayed,
    ),
    "pixel_shuffle": shuffled_pixels,
    **dict.fromkeys(words("repeat tile"), repeated),
    "roll": rolled,
    **dict.fromkeys(words("cat concat concatenate"), concatenated),
    "stack": stacked,
    **dict.fromkeys(words("split split_with_sizes chunk tensor_split"), split),
    **dict.fromkeys(words("slice narrow"), sliced),
    "select": selected,
    "unbind": unbound,
    "index": indexed,
    **dict.fromkeys(
        words(
            "pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d "
            "replication_pad2d replication_pad3d"
        ),
        padded,
    ),
    **dict.fromkeys(
        words(
            "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d "
            "_upsample_nearest_exact1d _upsample_nearest_exact2d upsample_bilinear2d "
            "upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa "
            "_upsample_bicubic2d_aa adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d "
            "_adaptive_avg_pool2d avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d "
            "max_pool3d max_pool2d_with_indices"
        ),
        resampled,
    ),
    "max_unpool2d": unpooled,
    **dict.fromkeys(words("grid_sampler grid_sampler_2d"), sampled),
    "im2col": unfolded_patches,
    "col2im": folded_patches,
    "unfold": windowed,
}
"""Rules of operators that move, join, cut or resample."""

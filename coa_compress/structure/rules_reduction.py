"""Label rules of reductions, softmax, norms and Fourier transforms."""

from collections.abc import Mapping

from torch import fx

from coa_compress.structure.calls import (
    Call,
    Restriction,
    Rule,
    UnsupportedCallError,
    Where,
    axis,
)
from coa_compress.structure.graph import words
from coa_compress.structure.labels import Dims, Vector


def reduction(call: Call) -> tuple[Dims, ...]:
    """Drop the labels of reduced dimensions; what is left over kept channels is exact."""
    operand = call.inputs[0]
    dims = call.dims(operand)
    reduced = _reduced(call, len(dims))
    if call.name in _POSITIONS or (len(call.out_shapes) > 1 and _uses_output(call.node, 1)):
        # the number of a channel changes with a cut
        _freeze(call, [dims[dim] for dim in reduced])
        dims = call.dims(operand)
    name = next(iter(call.arguments))
    _limit(call, "select", [(name, None, dim) for dim in reduced], operand)
    left: list[Vector | None] = [None if i in reduced else v for i, v in enumerate(dims)]
    if len(call.out_shape) != len(dims):
        left = [vector for i, vector in enumerate(left) if i not in reduced]
    return (tuple(left),) * len(call.out_shapes)


def softmax(call: Call) -> tuple[Dims, ...]:
    """Pass labels on; a softmax over channels is limited to the kept ones."""
    operand = call.tensor("self")
    dims = call.dims(operand)
    along = axis(call.integer("dim"), len(dims))
    _limit(call, "scatter", [("self", None, along)], operand)
    return (tuple(dims),)


def cumulative(call: Call) -> tuple[Dims, ...]:
    """Freeze the dimension that an operator accumulates, sorts or transforms along."""
    dims = call.dims(call.inputs[0])
    along = axis(call.integer("dim", -1), len(dims))
    call.space.freeze(dims[along])
    dims = call.dims(call.inputs[0])
    return (tuple(dims),) * len(call.out_shapes)


def channel_norm(call: Call) -> tuple[Dims, ...]:
    """Unite the channels with the statistics and weights of a norm that mixes none."""
    operand = call.tensor("input")
    dims = call.dims(operand)
    if call.shape(operand)[1] > 1:
        vectors = [dims[1]]
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = call.operand(name)
            if tensor is not None:
                vectors.append(call.dims(tensor)[0])
        dims[1] = call.space.meet(vectors)
    return (tuple(dims), *[(None,) * len(shape) for shape in call.out_shapes[1:]])


def batch_norm(call: Call) -> tuple[Dims, ...]:
    """Treat a batch norm as a channel norm.

    One that takes its statistics from its input, as standardized weights do (Qiao et al. 2019,
    arXiv:1903.10520), is limited to the kept positions of what it averages over.
    """
    if call.arguments.get("training"):
        operand = call.tensor("input")
        averaged: list[Where] = [
            ("input", None, dim) for dim in range(len(call.shape(operand))) if dim != 1
        ]
        _limit(call, "scatter", averaged, operand)
    return channel_norm(call)


def instance_norm(call: Call) -> tuple[Dims, ...]:
    """Treat an instance norm as a channel norm; its spatial statistics need whole maps."""
    for vector in call.dims(call.tensor("input"))[2:]:
        call.space.freeze(vector)
    return channel_norm(call)


def group_norm(call: Call) -> tuple[Dims, ...]:
    """Tie the same positions of every normalized group; limit the norm to the kept ones."""
    operand = call.tensor("input")
    shape = call.shape(operand)
    groups = call.integer("num_groups", 1)
    for vector in call.dims(operand)[2:]:
        call.space.freeze(vector)
    dims = call.dims(operand)
    dims[1] = call.space.tie(dims[1], shape[1] // groups)
    where: list[Where] = [("input", None, 1)]
    vectors = [dims[1]]
    for name in ("weight", "bias"):
        tensor = call.operand(name)
        if tensor is not None:
            vectors.append(call.dims(tensor)[0])
            where.append((name, None, 0))
    dims[1] = call.space.meet(vectors)
    _limit(call, "scatter", where if dims[1] is not None else [], operand)
    rest = [(None,) * len(out) for out in call.out_shapes[1:]]
    return (tuple(dims), *rest)


def layer_norm(call: Call) -> tuple[Dims, ...]:
    """Unite channels with the weights of a norm over the last dimensions; limit it to kept ones."""
    operand = call.tensor("input")
    rank = len(call.integers("normalized_shape"))
    start = len(call.shape(operand)) - rank
    where: list[Where] = []
    for dim in range(rank):
        vectors = [call.dims(operand)[start + dim]]
        names = [name for name in ("weight", "bias") if call.operand(name) is not None]
        vectors += [call.dims(call.tensor(name))[dim] for name in names]
        if call.shape(operand)[start + dim] > 1 and call.space.meet(vectors) is not None:
            where.append(("input", None, start + dim))
            where.extend((name, None, dim) for name in names)
    _limit(call, "scatter", where, operand)
    rest = [(None,) * len(out) for out in call.out_shapes[1:]]
    return (tuple(call.dims(operand)), *rest)


def weight_norm(call: Call) -> tuple[Dims, ...]:
    """Unite directions and lengths of a normalized weight; its norms run over the kept channels."""
    direction, length = call.tensor("v"), call.tensor("g")
    rank, along = len(call.shape(direction)), call.integer("dim")
    if along < 0:
        _freeze(call, call.dims(direction))
        _freeze(call, call.dims(length))
        return ((None,) * rank,)
    call.space.meet([call.dims(direction)[along], call.dims(length)[along]])
    normed: list[Where] = [("v", None, dim) for dim in range(rank) if dim != along]
    _limit(call, "scatter", normed, direction)
    return (tuple(call.dims(direction)),)


def transform(call: Call) -> tuple[Dims, ...]:
    """Freeze the dimensions that a Fourier transform mixes; pass on the others."""
    operand = call.inputs[0]
    rank = len(call.shape(operand))
    spectral = [axis(dim, rank) for dim in _spectral_dims(call, rank)]
    _freeze(call, [call.dims(operand)[dim] for dim in spectral])
    return (tuple(None if d in spectral else v for d, v in enumerate(call.dims(operand))),)


def complex_view(call: Call) -> tuple[Dims, ...]:
    """Add or drop the last dimension of real and imaginary parts."""
    dims = call.dims(call.tensor("self"))
    if call.name == "view_as_real":
        return ((*dims, None),)
    call.space.freeze(dims[-1])
    return (tuple(call.dims(call.tensor("self"))[:-1]),)


def fixed(call: Call) -> tuple[Dims, ...]:
    """Return frozen dimensions: a tensor of particular values."""
    return tuple((None,) * len(shape) for shape in call.out_shapes)


def _limit(call: Call, restriction: Restriction, where: list[Where], operand: fx.Node) -> None:
    first = where[0][0] if where else ""
    labeled = [w for w in where if w[0] != first or call.dims(operand)[w[2]] is not None]
    for name, _, dim in labeled:
        if name == first:
            call.restrict(call.dims(operand)[dim])
    call.mix(restriction, labeled)


def _freeze(call: Call, vectors: list[Vector | None]) -> None:
    for vector in vectors:
        call.space.freeze(vector)


def _reduced(call: Call, rank: int) -> list[int]:
    if call.arguments.get("dim") is None:
        return list(range(rank))
    dims = call.integers("dim") or list(range(rank))
    return [axis(dim, rank) for dim in dims]


def _uses_output(node: fx.Node, number: int) -> bool:
    return any(len(user.args) > 1 and user.args[1] == number and user.users for user in node.users)


def _spectral_dims(call: Call, rank: int) -> list[int]:
    if call.arguments.get("dim") is not None:
        return call.integers("dim")
    if call.name.endswith("2"):
        return [-2, -1]
    if call.name.endswith("n"):
        raise UnsupportedCallError(call.name)
    return [-1] if rank else []


_POSITIONS = frozenset({"argmax", "argmin"})

REDUCTION: Mapping[str, Rule] = {
    **dict.fromkeys(
        words(
            "mean sum var std max min amax amin linalg_vector_norm norm prod argmax argmin "
            "logsumexp nanmean std_mean var_mean any all"
        ),
        reduction,
    ),
    **dict.fromkeys(words("softmax _softmax log_softmax _log_softmax"), softmax),
    **dict.fromkeys(words("cumsum cumprod sort topk"), cumulative),
    **dict.fromkeys(words("batch_norm native_batch_norm"), batch_norm),
    "_native_batch_norm_legit_no_training": channel_norm,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
    "_weight_norm": weight_norm,
    **dict.fromkeys(words("layer_norm native_layer_norm rms_norm"), layer_norm),
    **dict.fromkeys(
        words(
            "fft_fft fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_rfftn "
            "fft_irfftn fft_fftn fft_ifftn _fft_r2c _fft_c2r _fft_c2c fft_fftshift "
            "fft_ifftshift"
        ),
        transform,
    ),
    **dict.fromkeys(words("view_as_real view_as_complex"), complex_view),
    **dict.fromkeys(words("eye arange linspace"), fixed),
}
"""Rules of operators that mix positions along some dimensions."""

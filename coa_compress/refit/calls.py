"""Calls of linear operators, seen where they happen: in layers and in code between them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from coa_compress.refit.operators import Convolution, Operator, Pointwise, Scale, Statistics
from coa_compress.refit.statistics import Normalization


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of an operator that is linear in a weight.

    Args:
        operator: What it does with the weight.
        given: Returns the input, or what a normalization makes of it before its factors.
        weight: The weight.
        bias: What is added to each channel, or None.
        output: What came out.
        norm: How the output follows from running statistics, where these are the weight.
    """

    operator: Operator
    given: Callable[[], Tensor]
    weight: Tensor
    bias: Tensor | None
    output: Tensor
    norm: Normalization | None = None


Visit = Callable[[Call], bool]
"""Called with every call that has just been made; returns whether to make it again, as its weight
has been changed in place."""


class Watch(TorchFunctionMode):
    """Tell of every linear operator that runs, whether a layer calls it or plain code.

    Args:
        visit: Called after each of them; where it returns True, the operator runs once more, and
            the network goes on with what comes out then.
    """

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self._visit = visit

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the function, and tell of it."""
        del types
        named = dict(kwargs or {})
        name = str(getattr(func, "__name__", "")).partition(".")[0]
        output = func(*args, **named)
        if name in _READERS and isinstance(output, Tensor):
            changed = [self._visit(call) for call in _read(name, func, args, named, output)]
            if any(changed):
                return func(*args, **named)
        return output


def _read(
    name: str,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    named: dict[str, Any],
    output: Tensor,
) -> Sequence[Call]:
    names, read = _READERS[name]
    if isinstance(func, torch._ops.OpOverload):
        names = [_OPERATOR_WORDS.get(a.name, a.name) for a in func._schema.arguments]
    elif name == "einsum":
        args = (args[0], args[1] if isinstance(args[1], list | tuple) else args[1:])
    return read(dict(zip(names, args, strict=False)) | named, output)


_OPERATOR_WORDS = {"self": "input", "tensors": "operands"}


def _convolution(given: Mapping[str, Any], output: Tensor, *, transposed: bool) -> Sequence[Call]:
    inputs, weight = given["input"], given["weight"]
    rank = weight.dim() - 2
    if inputs.dim() != weight.dim():  # an example without a batch
        return ()
    stride = _each(given.get("stride", 1), rank)
    dilation = _each(given.get("dilation", 1), rank)
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        whole = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
        padding = [size // 2 if padding == "same" else 0 for size in whole]
    groups = int(given.get("groups", 1))
    operator = Convolution(stride, _each(padding, rank), dilation, groups, transposed)
    return (Call(operator, lambda: inputs, weight, given.get("bias"), output),)


def _linear(given: Mapping[str, Any], output: Tensor) -> Sequence[Call]:
    inputs, weight = given["input"], given["weight"]
    if weight.dim() != 2:
        return ()
    return (Call(Pointwise(), lambda: inputs, weight, given.get("bias"), output),)


def _product(given: Mapping[str, Any], output: Tensor, *, swapped: bool = False) -> Sequence[Call]:
    """Return the call for ``given @ weight``, or ``weight @ given``."""
    left, right = (given["other"], given["input"]) if swapped else (given["input"], given["other"])
    if _may_be_weight(right):
        return (Call(Pointwise(reads=0), lambda: left, right, None, output),)
    if _may_be_weight(left) and right.dim() > 1:
        return (Call(Pointwise(-2, -2, reads=1), lambda: right, left, None, output),)
    return ()


def _einsum(given: Mapping[str, Any], output: Tensor) -> Sequence[Call]:
    """Return the call for an equation that contracts one letter with a matrix."""
    operands, equation = given["operands"], given["equation"]
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return ()
    # an ellipsis is a letter of its own, and positions after it are counted from the end
    terms, _, result = equation.replace(" ", "").replace("...", ".").partition("->")
    sides = terms.split(",")
    for at in (0, 1):
        weight, inputs, letters, own = operands[at], operands[1 - at], sides[1 - at], sides[at]
        if not _may_be_weight(weight) or not _is_matrix_product(own, letters, result):
            continue
        reads = 0 if own[0] in letters else 1
        operator = Pointwise(
            letters.index(own[reads]) - len(letters),
            result.index(own[1 - reads]) - len(result),
            reads,
        )
        return (Call(operator, lambda kept=inputs: kept, weight, None, output),)  # type: ignore[misc]
    return ()


def _is_matrix_product(own: str, letters: str, result: str) -> bool:
    if "." in own or len(set(own)) != 2 or len(set(letters)) != len(letters):
        return False
    last, written_last = letters.rpartition(".")[2], result.rpartition(".")[2]
    read = [letter for letter in own if letter in last and letter not in result]
    written = [letter for letter in own if letter in written_last and letter not in letters]
    rest = [letter for letter in letters if letter not in own]
    return len(read) == len(written) == 1 and rest == [c for c in result if c not in own]


def _may_be_weight(tensor: Tensor) -> bool:
    return isinstance(tensor, torch.nn.Parameter) and tensor.dim() == 2


def _layer_norm(given: Mapping[str, Any], output: Tensor, *, function: Any) -> Sequence[Call]:
    weight, shape = given.get("weight"), given["normalized_shape"]
    if weight is None or weight.dim() != 1:
        return ()
    inputs, eps = given["input"], given.get("eps")
    options = {} if eps is None else {"eps": eps}
    plain = partial(function, inputs, tuple(shape), **options)
    return (Call(Scale(-1), plain, weight, given.get("bias"), output),)


def _group_norm(given: Mapping[str, Any], output: Tensor) -> Sequence[Call]:
    weight = given.get("weight")
    if weight is None:
        return ()
    plain = partial(
        functional.group_norm, given["input"], given["num_groups"], eps=given.get("eps", 1e-5)
    )
    return (Call(Scale(1), plain, weight, given.get("bias"), output),)


def _statistics_norm(given: Mapping[str, Any], output: Tensor, *, function: Any) -> Sequence[Call]:
    names = ("running_mean", "running_var", "training", "use_input_stats", "eps")
    options = {name: given[name] for name in names if name in given}
    inputs, weight, bias = given["input"], given.get("weight"), given.get("bias")
    mean, variance = given.get("running_mean"), given.get("running_var")
    measures_itself = given.get("training", given.get("use_input_stats", False))
    if mean is not None and variance is not None and not measures_itself:
        norm = Normalization(mean, variance, weight, bias, given.get("eps", 1e-5))
        return (Call(Statistics(1), lambda: inputs, mean, None, output, norm),)
    if weight is None:
        return ()
    return (Call(Scale(1), partial(function, inputs, **options), weight, bias, output),)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONVOLUTION[:5], "output_padding", "groups", "dilation")
_STATISTICS = ("input", "running_mean", "running_var", "weight", "bias")

Reader = Callable[[Mapping[str, Any], Tensor], Sequence[Call]]

_READERS: Mapping[str, tuple[Sequence[str], Reader]] = {
    **{
        f"conv{rank}d": (_CONVOLUTION, partial(_convolution, transposed=False))
        for rank in (1, 2, 3)
    },
    **{
        f"conv_transpose{rank}d": (_TRANSPOSED, partial(_convolution, transposed=True))
        for rank in (1, 2, 3)
    },
    "linear": (_CONVOLUTION[:3], _linear),
    "matmul": (("input", "other"), _product),
    "__matmul__": (("input", "other"), _product),
    "__rmatmul__": (("input", "other"), partial(_product, swapped=True)),
    "einsum": (("equation", "operands"), _einsum),
    "layer_norm": (
        ("input", "normalized_shape", "weight", "bias", "eps"),
        partial(_layer_norm, function=functional.layer_norm),
    ),
    "rms_norm": (
        ("input", "normalized_shape", "weight", "eps"),
        partial(_layer_norm, function=functional.rms_norm),
    ),
    "group_norm": (("input", "num_groups", "weight", "bias", "eps"), _group_norm),
    "batch_norm": (
        (*_STATISTICS, "training", "momentum", "eps"),
        partial(_statistics_norm, function=functional.batch_norm),
    ),
    "instance_norm": (
        (*_STATISTICS, "use_input_stats", "momentum", "eps"),
        partial(_statistics_norm, function=functional.instance_norm),
    ),
}

"""What a student must compute: the teacher's graph at full size, limited to the kept channels.

Nothing is cut here. Every operator runs at full width, and those that mix channels are limited to
the kept ones, so that the result does not depend on how a student is made.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from coa_compress.structure.calls import Mixing, Where
from coa_compress.structure.graph import (
    ExportedGraph,
    arguments_of,
    evaluation_copy,
    is_assertion,
    output_nodes,
)
from coa_compress.structure.rebuild import named_tensors
from coa_compress.structure.selection import Selection, shape_arguments

_LIFT: object = torch.ops.aten.lift_fresh.default
_HALF = (torch.float16, torch.bfloat16, torch.float32)


class DoublePrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes code that asks for single precision compute in double precision, however it asks.

    Numbers that become tensors in the code are rounded to single precision, as export does.
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        del types
        doubled = {key: _doubled(value) for key, value in (kwargs or {}).items()}
        result = func(*[_doubled(value) for value in args], **doubled)
        if func is _LIFT and isinstance(result, Tensor) and result.dtype == torch.float64:
            return result.float().double()
        return result


@contextmanager
def double_precision() -> Iterator[None]:
    """Let networks run in double precision and keep no gradients; all is restored on exit."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), DoublePrecision():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(default)


def in_double(example: Tensor) -> Tensor:
    """Return an input in double precision; one of whole numbers, such as tokens, as it is."""
    return example.double() if example.is_floating_point() else example


def doubled_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode and double precision, plain tensor attributes included."""
    doubled = evaluation_copy(model).double()
    for module in doubled.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                object.__setattr__(module, name, value.double())
    return doubled


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """The values of a graph.

    Args:
        values: The result of every node, if they were kept.
        outputs: The results of the network, in order.
    """

    values: Mapping[fx.Node, object]
    outputs: tuple[Tensor, ...]


def run_reference(
    model: nn.Module, selection: Selection, example: Tensor, *, keep_values: bool = False
) -> Traced:
    """Return what the full-size graph computes, limited to the kept channels.

    Args:
        model: The teacher, with the weights to use.
        selection: Which channels are kept.
        example: An input of the size that was exported.
        keep_values: Return the result of every node too, and not of the last alone.
    """

    def run(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
        return _run_limited(node, values, selection)

    values: dict[fx.Node, object] = {}
    outputs: tuple[Tensor, ...] = ()
    for node, value in walk(selection.labeled.graph, model, example, run):
        if keep_values:
            values[node] = value
        if node.op == "output":
            outputs = tuple(item for item in _flat(value) if isinstance(item, Tensor))
    return Traced(values, limited_outputs(selection, outputs))


def limited_outputs(selection: Selection, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the results of the uncut network without the channels that go; most have none.

    Args:
        selection: Which channels are kept.
        outputs: Every tensor that the network returns, in order.
    """
    labeled = selection.labeled
    (last,) = (node for node in labeled.graph.nodes if node.op == "output")
    limited: list[Tensor] = []
    for node, value in zip(output_nodes(last), outputs, strict=True):
        for dim, labels in enumerate(labeled.dims(node)):
            if labels is not None:
                value = value.index_select(dim, selection.kept(labels).to(value.device))
        limited.append(value)
    return tuple(limited)


def walk(
    graph: ExportedGraph,
    model: nn.Module,
    example: Tensor,
    run: Callable[[fx.Node, Mapping[fx.Node, object]], object],
) -> Iterator[tuple[fx.Node, object]]:
    """Yield every node of a graph with its value, as it is at that moment.

    A value is forgotten after its last use.

    Args:
        graph: The graph.
        model: The network with the weights to use.
        example: An input of the size that was exported.
        run: Computes the value of a call from those before.
    """
    tensors = named_tensors(model)
    values: dict[fx.Node, object] = {}
    last_user = {used: node for node in graph.nodes for used in node.all_input_nodes}
    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = _given(node, graph, tensors, example)
        elif node.op == "get_attr":
            values[node] = getattr(graph.module, str(node.target))
        elif node.op == "call_function":
            values[node] = None if is_assertion(node) else run(node, values)
        else:
            values[node] = _resolved(node.args[0], values)
        yield node, values[node]
        for used in node.all_input_nodes:
            if last_user[used] is node:
                values.pop(used, None)


def _given(
    node: fx.Node, graph: ExportedGraph, tensors: Mapping[str, Tensor], example: Tensor
) -> Tensor | None:
    if node.name == graph.input_name:
        return example.clone()
    if node.name in graph.tensors:
        return tensors[graph.tensors[node.name]].detach()
    return _like(graph.constants.get(node.name), example)


def run_plain(node: fx.Node, values: Mapping[fx.Node, object]) -> object:
    """Return what a call makes of the values before, as it is."""
    args = _resolved(node.args, values)
    kwargs = _resolved(dict(node.kwargs), values)
    return _callee(node)(*args, **kwargs)


def _resolved(argument: Any, values: Mapping[fx.Node, object]) -> Any:
    """Return an argument with nodes replaced by their values."""
    return fx.map_arg(argument, lambda node: values[node])  # type: ignore[arg-type,return-value]


def _callee(node: fx.Node) -> Callable[..., object]:
    if not callable(node.target):
        message = f"node {node.name} calls {node.target!r}, which is no function"
        raise TypeError(message)
    return node.target


def _run_limited(node: fx.Node, values: Mapping[fx.Node, object], selection: Selection) -> object:
    mixing, target = selection.labeled.findings.mixing.get(node), _callee(node)
    schema = getattr(target, "_schema", None)
    if mixing is None or schema is None:
        args = _resolved(node.args, values)
        kwargs = _resolved(dict(node.kwargs), values)
        doubled = {key: _doubled(value) for key, value in kwargs.items()}
        return target(*[_doubled(value) for value in args], **doubled)
    arguments = {
        name: _doubled(_resolved(value, values)) for name, value in arguments_of(node).items()
    }
    kept = _limit(node, arguments, mixing, selection)
    if "normalized_shape" in arguments:
        # the norm runs over the kept channels: the last dimensions of its limited input
        shape = _value(arguments, ("input", None, 0)).shape
        start = len(shape) - len(shape_arguments(node))
        arguments["normalized_shape"] = list(shape[start:])
    positional = [arguments[item.name] for item in schema.arguments if not item.kwarg_only]
    named = {item.name: arguments[item.name] for item in schema.arguments if item.kwarg_only}
    result = target(*positional, **named)
    return _put_back(result, kept) if mixing.restriction == "scatter" else result


def _limit(
    node: fx.Node, arguments: dict[str, object], mixing: Mixing, selection: Selection
) -> list[tuple[int, Tensor, int]]:
    """Limit operands in place; return dimension, kept positions and full size for the first."""
    kept: list[tuple[int, Tensor, int]] = []
    nodes = arguments_of(node)
    for where in mixing.where:
        operand = _operand(nodes, where)
        labels = selection.labeled.dims(operand)[where[2]]
        if labels is None:
            continue
        value = _value(arguments, where)
        if mixing.restriction == "zero":
            gone = selection.removed(labels).to(value.device)
            _set_value(arguments, where, value.index_fill(where[2], gone, 0))
            continue
        positions = selection.kept(labels).to(value.device)
        if where[0] == mixing.where[0][0]:
            kept.append((where[2], positions, value.shape[where[2]]))
        _set_value(arguments, where, value.index_select(where[2], positions))
    return kept


def _operand(nodes: Mapping[str, object], where: Where) -> fx.Node:
    value = nodes[where[0]]
    found = value if where[1] is None else value[where[1]]  # type: ignore[index]
    if not isinstance(found, fx.Node):
        message = f"operand {where[0]} is no tensor"
        raise TypeError(message)
    return found


def _value(arguments: Mapping[str, object], where: Where) -> Tensor:
    value = arguments[where[0]]
    found = value if where[1] is None else value[where[1]]  # type: ignore[index]
    if not isinstance(found, Tensor):
        message = f"operand {where[0]} is no tensor"
        raise TypeError(message)
    return found


def _set_value(arguments: dict[str, object], where: Where, value: Tensor) -> None:
    if where[1] is None:
        arguments[where[0]] = value
    else:
        items = list(arguments[where[0]])  # type: ignore[call-overload]
        items[where[1]] = value
        arguments[where[0]] = items


def _put_back(result: object, kept: Sequence[tuple[int, Tensor, int]]) -> object:
    first = result[0] if isinstance(result, tuple) else result
    if not isinstance(first, Tensor):
        return result
    for dim, positions, size in kept:
        shape = list(first.shape)
        shape[dim] = size
        first = first.new_zeros(shape).index_copy(dim, positions, first)
    return (first, *result[1:]) if isinstance(result, tuple) else first


def _doubled(value: object) -> object:
    return torch.float64 if isinstance(value, torch.dtype) and value in _HALF else value


def _like(value: Tensor | None, example: Tensor) -> Tensor | None:
    both = value is not None and value.is_floating_point() and example.is_floating_point()
    return value.to(example.dtype) if both and value is not None else value


def _flat(value: object) -> list[object]:
    if isinstance(value, list | tuple):
        return [item for part in value for item in _flat(part)]
    return [value]

"""The exported graph written anew for the kept channels: a function that runs at the new widths."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from coa_compress.structure.calls import axis
from coa_compress.structure.graph import (
    arguments_of,
    is_assertion,
    operator_name,
    shape_of,
    words,
)
from coa_compress.structure.selection import Selection, shape_arguments

_ATEN: Any = torch.ops.aten
LAYERS: tuple[type[nn.Module], ...] = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
)
"""Modules that a graph calls as such, where a call is all that they do."""


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A function that runs a network of which only some channels are left, at one input size.

    Args:
        run: Called with the owner of the parameters, the input and the constants.
        constants: Tensors that are no parameters.
        results: How the tensors that it returns are packed.
    """

    run: Callable[..., Any]
    constants: tuple[object, ...]
    results: pytree.TreeSpec

    def __call__(self, owner: nn.Module, example: Tensor) -> Any:
        """Return what the network returns for an input of that size."""
        return pytree.tree_unflatten(self.run(owner, example, *self.constants), self.results)


def write_program(selection: Selection, owner: nn.Module, like: Tensor) -> Program:
    """Return the graph at the widths that a selection leaves, as a function.

    Args:
        selection: The kept channels.
        owner: A network that holds the parameters under the teacher's names.
        like: A tensor of the device and the type to compute with.
    """
    graph = selection.labeled.graph
    written = fx.Graph()
    made, constants = _write_inputs(written, selection, like)
    layers = {path: module for path, module in owner.named_modules() if type(module) in LAYERS}
    for node in graph.nodes:
        if node.op == "call_function" and not is_assertion(node):
            made[node] = _write_call(written, node, made, selection, layers, like)
        elif node.op == "output":
            written.output(_mapped(node.args[0], made, like))
    for node in [n for n in written.nodes if n.op == "get_attr" and not n.users]:
        written.erase_node(node)
    return Program(_compiled(written), constants, graph.results)


def _write_inputs(
    written: fx.Graph, selection: Selection, like: Tensor
) -> tuple[dict[fx.Node, fx.Node], tuple[object, ...]]:
    """Write the input, the constants and the parameters; return them, and the constants."""
    graph = selection.labeled.graph
    made: dict[fx.Node, fx.Node] = {}
    constants: list[object] = []
    for node in sorted(graph.nodes, key=lambda node: node.name != graph.input_name):
        if node.op == "placeholder" and node.name in graph.tensors:
            made[node] = written.get_attr(graph.tensors[node.name])
        elif node.op == "placeholder" and node.name == graph.input_name:
            made[node] = written.placeholder("x")
        elif node.op in ("placeholder", "get_attr"):
            constants.append(_constant(selection, node, like))
            made[node] = written.placeholder(f"constant_{len(constants)}")
    return made, tuple(constants)


def _constant(selection: Selection, node: fx.Node, like: Tensor) -> object:
    graph = selection.labeled.graph
    value = graph.constants.get(node.name)
    if node.op == "get_attr":
        value = getattr(graph.module, str(node.target))
    if not isinstance(value, Tensor):
        return value
    both = value.is_floating_point() and like.is_floating_point()
    return value.detach().to(like.device, like.dtype if both else value.dtype)


def _write_call(
    written: fx.Graph,
    node: fx.Node,
    made: Mapping[fx.Node, fx.Node],
    selection: Selection,
    layers: Mapping[str, nn.Module],
    like: Tensor,
) -> fx.Node:
    layer = _layer_of(node, selection, layers)
    if layer is not None:
        operand = arguments_of(node)["input"]
        return written.call_module(layer, (_mapped(operand, made, like),))
    target, arguments = _rewritten(node, selection)
    args, kwargs = (_mapped(values, made, like) for values in arguments)
    return written.call_function(target, args, kwargs)


def _mapped(value: Any, made: Mapping[fx.Node, fx.Node], like: Tensor) -> Any:
    """Return an argument with new nodes, the device at hand, and its type of numbers."""

    def change(item: Any) -> Any:
        if isinstance(item, fx.Node):
            return made.get(item)
        if isinstance(item, torch.device):
            return like.device
        if isinstance(item, torch.dtype) and item.is_floating_point:
            return like.dtype if like.is_floating_point() else item
        return item

    return fx.node.map_aggregate(value, change)


def _layer_of(node: fx.Node, selection: Selection, layers: Mapping[str, nn.Module]) -> str | None:
    """Return the path of the module that this call is all of; None when there is none."""
    arguments = arguments_of(node)
    weight = arguments.get("weight")
    if not isinstance(weight, fx.Node):
        return None
    path = selection.labeled.graph.tensors.get(weight.name, "").rpartition(".")[0]
    layer = layers.get(path)
    names = _LAYER_TENSORS.get(operator_name(node), ())
    if layer is None or not names or not _same_tensors(selection, arguments, names, (path, layer)):
        return None
    return path if _same_settings(node, arguments, layer) else None


def _same_tensors(
    selection: Selection,
    arguments: Mapping[str, object],
    names: Collection[str],
    layer: tuple[str, nn.Module],
) -> bool:
    tensors = selection.labeled.graph.tensors
    path, module = layer
    for name in names:
        operand = arguments.get(name)
        found = tensors.get(operand.name) if isinstance(operand, fx.Node) else None
        expected = f"{path}.{name}".removeprefix(".")
        if found != (expected if getattr(module, name, None) is not None else None):
            return False
        if isinstance(operand, fx.Node) and found is None:
            return False
    return True


def _same_settings(node: fx.Node, arguments: Mapping[str, object], layer: nn.Module) -> bool:
    name = operator_name(node)
    if isinstance(layer, nn.modules.conv._ConvNd):
        pairs = [(arguments[key], getattr(layer, key)) for key in ("stride", "padding", "dilation")]
        alike = all(_as_tuple(given, own) == _as_tuple(own, given) for given, own in pairs)
        return name == f"conv{len(layer.kernel_size)}d" and layer.padding_mode == "zeros" and alike
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return name == "batch_norm" and not arguments["training"] and arguments["eps"] == layer.eps
    return name == "linear"


def _as_tuple(value: object, other: object) -> object:
    if isinstance(value, list | tuple):
        rank = len(other) if isinstance(other, list | tuple) else len(value)
        return tuple(value) * rank if len(value) == 1 else tuple(value)
    return value


_LAYER_TENSORS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(words("conv1d conv2d conv3d linear"), ("weight", "bias")),
    "batch_norm": ("weight", "bias", "running_mean", "running_var"),
}


def _rewritten(node: fx.Node, selection: Selection) -> tuple[Any, tuple[Any, Any]]:
    """Return what a call is at the new widths: its function, and arguments by place and name."""
    name = operator_name(node)
    if getattr(node.target, "_schema", None) is None:
        return node.target, (node.args, node.kwargs)
    if name in _SPLITS:
        return _ATEN.split_with_sizes.default, _split(node, selection)
    changes: dict[str, object] = {}
    if name in _REPEATS:
        changes[_REPEATS[name]] = _repeats(node, selection, _REPEATS[name])
    elif shape_arguments(node):
        changes = _sizes(node, selection)
    elif name in _BOUNDS:
        changes = selection.bounds(node)
    elif node in selection.labeled.findings.shrinking:
        changes["groups"] = selection.groups(node)
    elif name == "scaled_dot_product_attention" and arguments_of(node)["scale"] is None:
        query = arguments_of(node)["query"]
        changes["scale"] = shape_of(query)[-1] ** -0.5 if isinstance(query, fx.Node) else None
    target = _ATEN.reshape.default if name == "_reshape_alias" else node.target
    return target, _with_changes(node, changes)


def _with_changes(node: fx.Node, changes: Mapping[str, object]) -> tuple[Any, Any]:
    args: list[Any] = list(node.args)
    kwargs: dict[str, Any] = dict(node.kwargs)
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    for name, value in changes.items():
        place = names.index(name)
        if place < len(args):
            args[place] = value
        else:
            kwargs[name] = value
    if operator_name(node) == "_reshape_alias":
        args = args[:2]
    return tuple(args), kwargs


def _sizes(node: fx.Node, selection: Selection) -> dict[str, object]:
    arguments = arguments_of(node)
    name = next(key for key in ("size", "shape", "sizes", "normalized_shape") if key in arguments)
    given = arguments[name]
    listed = list(given) if isinstance(given, list | tuple) else [given]
    new = selection.sizes(node)
    for position, dim in shape_arguments(node):
        place = position - 1 if name == "sizes" else position
        if listed[place] != -1:
            listed[place] = new[dim]
    return {name: listed}


def _repeats(node: fx.Node, selection: Selection, name: str) -> list[int]:
    arguments = arguments_of(node)
    operand, given = arguments["self"], arguments[name]
    repeats = [int(count) for count in given] if isinstance(given, list | tuple) else []
    shape = shape_of(operand) if isinstance(operand, fx.Node) else ()
    new = selection.sizes(node)
    for back in range(1, len(repeats) + 1):
        if back > len(shape) or shape[-back] == 1:
            repeats[-back] = new[-back]
    return repeats


def _split(node: fx.Node, selection: Selection) -> tuple[Any, Any]:
    arguments = arguments_of(node)
    operand = next(iter(arguments.values()))
    dim = arguments["dim"]
    along = axis(dim if isinstance(dim, int) else 0, len(node.meta["val"][0].shape))
    count = len(node.meta["val"])
    return (operand, [selection.sizes(node, i)[along] for i in range(count)], along), {}


_SPLITS = frozenset(words("split split_with_sizes chunk tensor_split"))
_BOUNDS = frozenset(words("slice narrow slice_scatter"))
_REPEATS: Mapping[str, str] = {"repeat": "repeats", "tile": "dims"}


def _compiled(graph: fx.Graph) -> Callable[..., Any]:
    """Return the function that a graph is, as source code that Python has compiled."""
    code = graph.python_code("self")
    space: dict[str, Any] = dict(code.globals)
    exec(compile(code.src, "<graph of a student>", "exec"), space)
    run: Callable[..., Any] = space["forward"]
    return run

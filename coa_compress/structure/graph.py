"""Export of a network to a graph of tensor operators that remembers where each call was made."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from coa_compress.copying import copied
from coa_compress.errors import StructureError
from coa_compress.structure.torch_export import exported_program, in_torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass(frozen=True, slots=True)
class Place:
    """Where a call was made.

    Args:
        module: Path of the innermost module that was running.
        line: File and line of the innermost frame outside of torch; empty when unknown.
    """

    module: str
    line: str


@dataclass(frozen=True, slots=True, eq=False)
class ExportedGraph:
    """A network as a graph of operators at one input size.

    Args:
        module: Owner of the graph.
        tensors: Name of the parameter or buffer behind a placeholder, by name of the placeholder;
            a tensor with several names goes by its first.
        parameters: The placeholders of parameters.
        constants: Tensors that are neither, by name of the placeholder.
        input_name: The placeholder of the input.
        results: How the tensors that it returns are packed.
    """

    module: fx.GraphModule
    tensors: Mapping[str, str]
    parameters: frozenset[str]
    constants: Mapping[str, Tensor]
    input_name: str
    results: pytree.TreeSpec

    @property
    def nodes(self) -> Iterator[fx.Node]:
        """Every node in the order of execution."""
        return iter(self.module.graph.nodes)


def export_graph(model: nn.Module, example: Tensor) -> ExportedGraph:
    """Return the operators that a network runs on an input; the network is unchanged.

    Args:
        model: Any network; it is exported in evaluation mode.
        example: An input.

    Raises:
        ModelError: If the network cannot be copied.
        StructureError: If it cannot be run or exported, with the cause.

    >>> graph = export_graph(nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 4, 4))
    >>> [node.op for node in graph.nodes]
    ['placeholder', 'placeholder', 'placeholder', 'call_function', 'output']
    """
    program = exported_program(evaluation_copy(model), example, in_the_way=_mutates_shape)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    first = canonical_names(model)
    lifted = signature.inputs_to_lifted_tensor_constants
    if len(signature.user_inputs) != 1:
        message = f"{type(model).__name__} takes {len(signature.user_inputs)} tensors: only 1 works"
        raise StructureError(message)
    return ExportedGraph(
        module=program.graph_module,
        tensors={node: first.get(name, name) for node, name in names.items()},
        parameters=frozenset(signature.inputs_to_parameters),
        constants={node: _constant(program, name) for node, name in lifted.items()},
        input_name=str(signature.user_inputs[0]),
        results=program.call_spec.out_spec,
    )


def evaluation_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy in evaluation mode.

    Raises:
        ModelError: If the network cannot be copied.
    """
    return copied(model).eval()


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Return the first name of the same tensor, for every name of a parameter or buffer."""
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def words(text: str) -> list[str]:
    """Return the names in a table of operators.

    >>> words("conv1d conv2d")
    ['conv1d', 'conv2d']
    """
    return text.split()


def operator_name(node: fx.Node) -> str:
    """Return the name of the operator of a call, such as ``conv2d``, without its overload."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None:
        return str(schema.name).rpartition("::")[2]
    return str(getattr(node.target, "__name__", node.target))


def is_assertion(node: fx.Node) -> bool:
    """Tell whether a call only checks something, such as the data type of a tensor."""
    return node.op == "call_function" and operator_name(node).startswith("_assert")


UNKNOWN_SIZE = -1
"""Stands for a size that the values of a tensor decide, such as that of ``x[x > 0]``."""


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of the tensor that a node makes."""
    return sizes_of(node.meta["val"])


def sizes_of(value: Tensor) -> tuple[int, ...]:
    """Return the shape of a traced tensor, with ``UNKNOWN_SIZE`` where only its values tell."""
    return tuple(size if isinstance(size, int) else UNKNOWN_SIZE for size in value.shape)


def largest_sizes_of(value: Tensor) -> tuple[int, ...]:
    """Return the shape of a traced tensor, with the most that can be where only its values tell.

    A size without bound counts as 1: students are measured before a limit on memory is said to
    be met.
    """
    return tuple(size if isinstance(size, int) else _largest(size) for size in value.shape)


def _largest(size: torch.SymInt) -> int:
    bound = size.node.shape_env.bound_sympy(size.node.expr).upper
    return int(bound) if bound.is_Integer else 1


def is_tensor(node: object) -> bool:
    """Tell whether something is a node that makes one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def output_nodes(node: fx.Node) -> list[fx.Node]:
    """Return the nodes of the tensors that a network returns, in order, given its output node."""
    found: list[fx.Node] = []
    fx.map_arg(node.args, found.append)
    return [result for result in found if is_tensor(result)]


def arguments_of(node: fx.Node) -> dict[str, object]:
    """Return every argument of an operator call by name, with defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    bound: dict[str, object] = {}
    if schema is None:
        bound.update({str(number): value for number, value in enumerate(node.args)})
        bound.update(node.kwargs)
        return bound
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def place_of(node: fx.Node) -> Place:
    """Return where in the network's code a node comes from."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = re.sub(r"@\d+", "", stack[-1][0]) if stack else ""
    line = ""
    for file, number in _FRAME.findall(node.meta.get("stack_trace") or ""):
        if not in_torch(file):
            line = f"{file}:{number}"
    return Place(module, line)


def _mutates_shape(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable and not in_place_ok(node)


def in_place_ok(node: fx.Node) -> bool:
    """Tell whether an in-place operator changes values only, each where it is."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or operator_name(node) in _IN_PLACE


_IN_PLACE = frozenset(words("copy_ fill_ zero_ dropout_ feature_dropout_ masked_fill_ index_put_"))


def _constant(program: torch.export.ExportedProgram, name: str) -> Tensor:
    value = program.constants[name]
    if not isinstance(value, Tensor):
        message = f"constant {name!r} of the network is not a tensor but {type(value).__name__}"
        raise StructureError(message)
    return value

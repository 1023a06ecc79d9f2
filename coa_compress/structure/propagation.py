"""The pass over an exported graph that gives labels to every tensor dimension."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from coa_compress.errors import StructureError
from coa_compress.structure.calls import (
    Call,
    Contraction,
    Findings,
    Rule,
    UnsupportedCallError,
    opaque,
)
from coa_compress.structure.graph import (
    ExportedGraph,
    in_place_ok,
    is_assertion,
    operator_name,
    output_nodes,
)
from coa_compress.structure.labels import Dims, LabelSpace, Vector
from coa_compress.structure.rules_contraction import CONTRACTION
from coa_compress.structure.rules_movement import MOVEMENT
from coa_compress.structure.rules_pointwise import POINTWISE, pointwise
from coa_compress.structure.rules_reduction import REDUCTION
from coa_compress.structure.rules_writing import WRITING
from coa_compress.structure.sizes import SizeReads
from coa_compress.structure.torch_export import FAILURES

RULES: Mapping[str, Rule] = {
    **POINTWISE,
    **MOVEMENT,
    **CONTRACTION,
    **REDUCTION,
    **WRITING,
}
"""The label rule of each operator, by its name without namespace and overload."""


@dataclass(frozen=True, slots=True, eq=False)
class LabeledGraph:
    """An exported graph with labels on every tensor dimension.

    Args:
        graph: The operators.
        space: Where the labels live.
        known: Labels of each output of a node.
        tensors: Labels of each parameter and buffer by name.
        findings: What else the rules found.
    """

    graph: ExportedGraph
    space: LabelSpace
    known: Mapping[fx.Node, tuple[Dims, ...]]
    tensors: Mapping[str, Dims]
    findings: Findings

    def dims(self, node: fx.Node) -> tuple[Vector | None, ...]:
        """Return the final labels of the first output of a node."""
        return tuple(self.space.canonical(vector) for vector in self.known[node][0])


def propagate(
    graph: ExportedGraph,
    reads: SizeReads | None = None,
    *,
    outputs: Collection[int] = (),
) -> LabeledGraph:
    """Return the labels of a graph whose parameters start with labels of their own.

    Every position of a parameter dimension starts as a class of its own; operators unite classes.
    The network's input and outputs are frozen, and so is what enters an operator without a rule.

    Args:
        graph: An exported network.
        reads: Which integers its code reads from attributes; None when the graph itself is to be
            rewritten for a cut, so that the code does not matter.
        outputs: Numbers of the outputs that are frozen; empty for all.
    """
    space, findings = LabelSpace(), Findings()
    known: dict[fx.Node, tuple[Dims, ...]] = {}
    tensors: dict[str, Dims] = {}
    static: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = (_starting(space, graph, node, tensors),)
            if node.name != graph.input_name:
                static.add(node)
        elif node.op == "call_function":
            if all(operand in static for operand in node.all_input_nodes):
                static.add(node)
            adjustable = _never if reads is None else reads.adjustable
            call = Call(node, space, known, findings, static, adjustable, reads is None)
            known[node] = _outcome(call)
        elif node.op == "output":
            _freeze_outputs(space, node, known, outputs)
        else:
            known[node] = ((),)
    return LabeledGraph(graph, space, known, tensors, findings)


def _starting(
    space: LabelSpace, graph: ExportedGraph, node: fx.Node, tensors: dict[str, Dims]
) -> Dims:
    value = node.meta.get("val")
    name = graph.tensors.get(node.name)
    if not isinstance(value, Tensor):
        return ()
    if name is None or not value.is_floating_point() or not node.users:
        return (None,) * value.dim()
    if name not in tensors:
        tensors[name] = tuple(space.fresh(int(s)) if s > 1 else None for s in value.shape)
    return tensors[name]


def _outcome(call: Call) -> tuple[Dims, ...]:
    node, name = call.node, call.name
    if name == "getitem":
        source, number = node.args[0], node.args[1]
        if isinstance(source, fx.Node) and isinstance(number, int):
            return (call.known[source][number],)
    if is_assertion(node):
        return ((),)
    if not call.out_shapes:
        return opaque(call) or ((),)
    rule = rule_of(node)
    if rule is not None and not call.sized_by_data:
        try:
            return rule(call)
        except (UnsupportedCallError, LookupError, TypeError, ValueError):
            # an unforeseen use of an operator: what its rule has united stays united, which is safe
            pass
    if any(vector is not None for operand in call.inputs for vector in call.dims(operand)):
        call.findings.unknown.add(name)
    _record_whole(call)
    return opaque(call)


def _record_whole(call: Call) -> None:
    """Record the products of a call that no rule follows: they cost what they do at full size."""
    contractions = call.findings.contractions
    macs = _macs_of(call.node)
    if macs and all(item.node is not call.node for item in contractions):
        contractions.append(Contraction(call.node, macs, ()))


def _macs_of(node: fx.Node) -> int:
    """Return the multiply-accumulates of a call, by running it without data."""

    def without_data(operand: fx.Node) -> Any:
        value = operand.meta.get("val")
        return value.to("meta") if isinstance(value, Tensor) else value

    counter = FlopCounterMode(display=False)
    try:
        args = fx.map_arg(node.args, without_data)
        kwargs = fx.map_arg(dict(node.kwargs), without_data)
        with torch.no_grad(), counter:
            node.target(*args, **kwargs)  # type: ignore[operator]
    except FAILURES:
        return 0
    return counter.get_total_flops() // 2


def rule_of(node: fx.Node) -> Rule | None:
    """Return the label rule of an operator call; None when there is none."""
    name = operator_name(node)
    if not hasattr(node.target, "_schema"):
        return None
    if name.endswith("_") and name not in RULES and in_place_ok(node):
        name = name.removesuffix("_")
    if name not in RULES and torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return pointwise
    return RULES.get(name)


def _never(node: fx.Node, value: int) -> bool:
    del node, value
    return False


def _freeze_outputs(
    space: LabelSpace,
    node: fx.Node,
    known: Mapping[fx.Node, tuple[Dims, ...]],
    outputs: Collection[int],
) -> None:
    results = output_nodes(node)
    unknown = [number for number in outputs if number not in range(len(results))]
    if unknown:
        message = f"there is no output {unknown[0]}: the network returns {len(results)} tensors, "
        message += "counted from 0"
        raise StructureError(message)
    for number, result in enumerate(results):
        if not outputs or number in outputs:
            for vector in known[result][0]:
                space.freeze(vector)

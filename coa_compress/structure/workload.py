"""What one pass of a network does: operations to time, elements that move, bytes that live."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from coa_compress.artifacts import Operand, Operation, Workload
from coa_compress.costs import CostFunction, CostTerm, Extent, PeakFunction
from coa_compress.structure.graph import (
    arguments_of,
    canonical_names,
    is_assertion,
    largest_sizes_of,
    operator_name,
    words,
)
from coa_compress.structure.groups import Extents, FoundGroup, owner_of
from coa_compress.structure.propagation import LabeledGraph


def find_workload(
    labeled: LabeledGraph, model: nn.Module, groups: Sequence[FoundGroup]
) -> Workload:
    """Return what one pass does as a function of the widths of some groups.

    Memory is that of the exported graph, where a tensor is freed after its last use. Python code
    may hold on to tensors for longer, and an operator may use work space inside: what counts is
    measured on the network itself.

    Args:
        labeled: The labels of every tensor.
        model: The network.
        groups: The groups that may be cut.
    """
    extents = Extents.by(labeled, groups)
    return Workload(
        operations=tuple(_operations(labeled, extents)),
        traffic=CostFunction(extents.names, tuple(_traffic(labeled, extents))),
        memory=_memory(labeled, model, extents),
    )


def _operations(labeled: LabeledGraph, extents: Extents) -> Iterator[Operation]:
    seen: set[fx.Node] = set()
    for item in labeled.findings.contractions:
        if item.node in seen:
            continue
        seen.add(item.node)
        axes = _Axes(labeled, extents)
        arguments = {name: axes.argument(value) for name, value in arguments_of(item.node).items()}
        grouped = None
        if item.node in labeled.findings.shrinking:
            operand = arguments["input"]
            grouped = _last_axis(operand) if isinstance(operand, Operand) else None
        yield Operation(
            owner=owner_of(labeled, item),
            kind=operator_name(item.node),
            target=item.node.target,  # type: ignore[arg-type]  # a call_function node has a callable
            arguments=arguments,
            axes=axes.found,
            grouped=grouped,
        )


def _last_axis(operand: Operand) -> str | None:
    return next((size for size in reversed(operand.shape) if isinstance(size, str)), None)


@dataclass(frozen=True, slots=True, eq=False)
class _Axes:
    labeled: LabeledGraph
    extents: Extents
    found: dict[str, Extent] = field(default_factory=dict)

    def argument(self, value: object) -> object:
        """Return an argument of a call with its tensors described."""
        if isinstance(value, fx.Node):
            sizes = tuple(
                size if isinstance(size, int) else self._name(size)
                for size in _sizes(self.labeled, self.extents, value, 0)
            )
            return Operand(sizes, value.meta["val"].dtype)
        if isinstance(value, list | tuple) and any(isinstance(item, fx.Node) for item in value):
            return tuple(self.argument(item) for item in value)
        return value

    def _name(self, extent: Extent) -> str:
        for name, known in self.found.items():
            if known == extent:
                return name
        name = chr(ord("a") + len(self.found))
        self.found[name] = extent
        return name


def _sizes(
    labeled: LabeledGraph, extents: Extents, node: fx.Node, output: int
) -> list[int | Extent]:
    """Return the sizes of an output of a node, those that follow widths as extents."""
    value = node.meta["val"]
    shape = largest_sizes_of(value[output] if isinstance(value, list | tuple) else value)
    sizes: list[int | Extent] = []
    for vector, size in zip(labeled.known[node][output], shape, strict=True):
        extent = None if vector is None else extents.of(vector)
        sizes.append(extent if extent is not None and extent.per_channel else size)
    return sizes


def _term(owner: str, coefficient: int, sizes: Sequence[int | Extent]) -> CostTerm:
    fixed = prod(size for size in sizes if isinstance(size, int))
    following = tuple(size for size in sizes if isinstance(size, Extent))
    return CostTerm(owner, coefficient * fixed, following)


def _outputs(node: fx.Node) -> list[int]:
    value = node.meta.get("val")
    values = value if isinstance(value, list | tuple) else [value]
    return [number for number, one in enumerate(values) if isinstance(one, Tensor)]


def _traffic(labeled: LabeledGraph, extents: Extents) -> Iterator[CostTerm]:
    contractions = {item.node for item in labeled.findings.contractions}
    for node in labeled.graph.nodes:
        quiet = node.op != "call_function" or node in contractions or is_assertion(node)
        if quiet or (_base(node) is not None and not operator_name(node).endswith("_")):
            continue
        for operand in dict.fromkeys(node.all_input_nodes):
            if isinstance(operand.meta.get("val"), Tensor):
                yield _term(node.name, 1, _sizes(labeled, extents, operand, 0))
        for output in _outputs(node):
            yield _term(node.name, 1, _sizes(labeled, extents, node, output))


def _base(node: fx.Node) -> fx.Node | None:
    """Return the operand whose storage the result of a call shares, or None for a new one."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    first, name = node.all_input_nodes[0], operator_name(node)
    if name == "getitem" or name in _IDENTITY:
        return first
    schema = getattr(node.target, "_schema", None)
    if schema is None or not any(result.alias_info for result in schema.returns):
        return None
    value = first.meta.get("val")
    if name in _MAY_COPY and isinstance(value, Tensor) and not value.is_contiguous():
        return None
    return first


_IDENTITY = frozenset(words("dropout feature_dropout alpha_dropout detach alias"))
"""What returns its operand as it is when not in training."""
_MAY_COPY = frozenset(words("reshape flatten contiguous reshape_as unflatten"))
"""What returns a view of a tensor that lies in order in memory, else a copy."""


@dataclass(slots=True)
class _Life:
    terms: list[CostTerm]
    birth: int
    death: int


def _memory(labeled: LabeledGraph, model: nn.Module, extents: Extents) -> PeakFunction:
    lives: dict[fx.Node, _Life] = {}
    root: dict[fx.Node, fx.Node] = {}
    nodes = list(labeled.graph.nodes)
    for moment, node in enumerate(nodes):
        for operand in node.all_input_nodes:
            if operand in root and root[operand] in lives:
                lives[root[operand]].death = moment
        if node.op == "placeholder" or not _outputs(node) or is_assertion(node):
            continue
        base = _base(node)
        root[node] = node if base is None else root.get(base, base)
        if base is None and node.op == "call_function":
            lives[node] = _Life(list(_bytes(labeled, extents, node)), moment, moment)
    resident = list(_resident(labeled, model, extents))
    terms = [*resident, *(term for life in lives.values() for term in life.terms)]
    spans = [(0, len(nodes))] * len(resident)
    spans += [(life.birth, life.death) for life in lives.values() for _ in life.terms]
    births, deaths = (np.array(ends) for ends in zip(*spans, strict=True))
    moments = np.arange(len(nodes))[:, None]
    alive = _local_peaks((births <= moments) & (moments <= deaths))
    return PeakFunction(CostFunction(extents.names, tuple(terms)), alive)


def _bytes(labeled: LabeledGraph, extents: Extents, node: fx.Node) -> Iterator[CostTerm]:
    value = node.meta["val"]
    for output in _outputs(node):
        one = value[output] if isinstance(value, list | tuple) else value
        yield _term(node.name, one.element_size(), _sizes(labeled, extents, node, output))


def _resident(labeled: LabeledGraph, model: nn.Module, extents: Extents) -> Iterator[CostTerm]:
    first = canonical_names(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        dims = labeled.tensors.get(first.get(name, name), (None,) * tensor.dim())
        sizes: list[int | Extent] = [
            int(size) if vector is None else extents.of(vector)
            for vector, size in zip(dims, tensor.shape, strict=True)
        ]
        yield _term(name, tensor.element_size(), sizes)
    for node in labeled.graph.nodes:
        if node.op == "placeholder" and node.name == labeled.graph.input_name:
            yield from _bytes(labeled, extents, node)


def _local_peaks(alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the moments at which no neighbor has every tensor that is there, and more."""
    kept = [alive[0]]
    for row in alive[1:]:
        if not (kept[-1] & ~row).any():
            kept[-1] = row
        elif (row & ~kept[-1]).any():
            kept.append(row)
    return np.array(kept)

"""A choice of channels seen from the graph: kept positions, new shapes, new integer arguments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from coa_compress.errors import StructureError
from coa_compress.structure.calls import axis
from coa_compress.structure.graph import (
    arguments_of,
    is_tensor,
    operator_name,
    shape_of,
    sizes_of,
    words,
)
from coa_compress.structure.labels import Vector
from coa_compress.structure.propagation import LabeledGraph

Literal = tuple[int, int, int]
"""An integer argument: its number among the integers of the call, old value, new value."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a dimension: where it is, of how many, and the same among what is kept."""

    start: int
    length: int
    size: int
    before: int
    through: int
    left: int


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which labels stay.

    Args:
        labeled: The labels of every tensor.
        dead: The labels that go, one truth value for each.
    """

    labeled: LabeledGraph
    dead: NDArray[np.bool_]

    def kept(self, labels: Vector) -> Tensor:
        """Return the positions that stay, sorted, int64."""
        return torch.from_numpy(np.flatnonzero(~self._dead(labels)))

    def removed(self, labels: Vector) -> Tensor:
        """Return the positions that go, sorted, int64."""
        return torch.from_numpy(np.flatnonzero(self._dead(labels)))

    def size(self, labels: Vector | None, full: int) -> int:
        """Return how many positions of a dimension stay."""
        return full if labels is None else int((~self._dead(labels)).sum())

    def sizes(self, node: fx.Node, output: int = 0) -> list[int]:
        """Return the new shape of an output of a node."""
        value = node.meta["val"]
        shape = sizes_of(value[output] if isinstance(value, list | tuple) else value)
        dims = self.labeled.known[node][output]
        return [self.size(labels, full) for labels, full in zip(dims, shape, strict=True)]

    def tensor_slices(self) -> dict[str, dict[int, Tensor]]:
        """Return the kept positions of each cut dimension of each cut parameter and buffer."""
        slices: dict[str, dict[int, Tensor]] = {}
        for name, dims in self.labeled.tensors.items():
            for dim, labels in enumerate(dims):
                if labels is not None and self._dead(labels).any():
                    slices.setdefault(name, {})[dim] = self.kept(labels)
        return slices

    def groups(self, node: fx.Node) -> int:
        """Return the new number of groups of a convolution that loses whole groups."""
        before = self.labeled.findings.shrinking[node]
        operand = arguments_of(node)["input"]
        weight = arguments_of(node)["weight"]
        if not isinstance(operand, fx.Node) or not isinstance(weight, fx.Node):
            return before
        channel = len(shape_of(operand)) - len(shape_of(weight)) + 1
        return self.sizes(operand)[channel] * before // shape_of(operand)[channel]

    def literals(self, node: fx.Node) -> Iterator[Literal]:
        """Yield the integer arguments of a call that stand for sizes, old and new."""
        name = operator_name(node)
        if name in _SHAPED:
            yield from self._shape_literals(node)
        elif name in _SPLITS:
            yield from self._split_literals(node)
        elif name in ("slice", "narrow", "slice_scatter"):
            yield from self._bound_literals(node)
        elif node in self.labeled.findings.shrinking:
            yield -1, self.labeled.findings.shrinking[node], self.groups(node)

    def _dead(self, labels: Vector) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = self.dead[self.labeled.space.roots(labels)]
        return found

    def _shape_literals(self, node: fx.Node) -> Iterator[Literal]:
        old, new = shape_of(node), self.sizes(node)
        for position, dim in shape_arguments(node):
            yield position, old[dim], new[dim]

    def _split_literals(self, node: fx.Node) -> Iterator[Literal]:
        values = node.meta["val"]
        along = axis(_integer(arguments_of(node)["dim"]), len(values[0].shape))
        for index, value in enumerate(values):
            yield index, int(value.shape[along]), self.sizes(node, index)[along]

    def bounds(self, node: fx.Node) -> dict[str, object]:
        """Return the new bounds of a call that takes or writes a part of its first operand."""
        arguments = arguments_of(node)
        if arguments.get("step") not in (None, 1):
            return {}
        part = self._part(node)
        if part is None or (part.size == part.left and part.start == part.before):
            return {}
        if "length" in arguments:
            return {"start": part.before, "length": part.through - part.before}
        return {"start": part.before, "end": part.through}

    def _part(self, node: fx.Node) -> _Part | None:
        arguments = arguments_of(node)
        operand = arguments["self"]
        if not isinstance(operand, fx.Node):
            return None
        along = axis(_integer(arguments["dim"]), len(shape_of(operand)))
        part = arguments.get("src", node)
        size = shape_of(operand)[along]
        length = shape_of(part if isinstance(part, fx.Node) else node)[along]
        labels = self.labeled.known[operand][0][along]
        start = _integer(arguments.get("start"))
        start = min(max(start + size, 0) if start < 0 else start, size)
        positions = np.arange(size) if labels is None else self.kept(labels).numpy()
        before = int((positions < start).sum())
        through = int((positions < start + length).sum())
        return _Part(start, length, size, before, through, len(positions))

    def _bound_literals(self, node: fx.Node) -> Iterator[Literal]:
        part = self._part(node)
        if part is None:
            return
        start, length, size = part.start, part.length, part.size
        before, through, left = part.before, part.through, part.left
        yield -1, start, before
        yield -1, start + length, through
        yield -1, start - size, before - left
        yield -1, start + length - size, through - left
        yield -1, length, through - before


def shape_arguments(node: fx.Node) -> list[tuple[int, int]]:
    """Return the integer arguments of a call that are sizes of its output: number and dimension."""
    name, rank = operator_name(node), len(shape_of(node)) if is_tensor(node) else 0
    if name not in _SHAPED or not is_tensor(node):
        return []
    arguments = arguments_of(node)
    if name == "unflatten":
        count = len(_list(arguments["sizes"]))
        first = axis(_integer(arguments["dim"]), rank - count + 1)
        return [(1 + index, first + index) for index in range(count)]
    if name in ("layer_norm", "rms_norm"):
        count = len(_list(arguments["normalized_shape"]))
        return [(index, rank - count + index) for index in range(count)]
    return [(dim, dim) for dim in range(rank)]


def _integer(value: object) -> int:
    return value if isinstance(value, int) else 0


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list | tuple) else [value]


_SHAPED = frozenset(
    words(
        "view reshape _unsafe_view expand zeros ones full empty new_zeros new_ones new_full "
        "new_empty unflatten layer_norm rms_norm"
    )
)
_SPLITS = frozenset(words("split split_with_sizes"))


def selection_of_slices(
    labeled: LabeledGraph, slices: Mapping[str, Mapping[int, Tensor]]
) -> Selection:
    """Return the choice of channels that leaves certain positions of parameters and buffers.

    Args:
        labeled: The labels of a network, at any input size.
        slices: Kept positions of each cut dimension of each cut parameter and buffer.

    Raises:
        StructureError: If no choice of channels leaves exactly these.
    """
    dead = np.zeros(labeled.space.count, dtype=np.bool_)
    for name, dims in slices.items():
        for dim, kept in dims.items():
            labels = labeled.tensors[name][dim] if name in labeled.tensors else None
            if labels is not None:
                gone = np.ones(len(labels), dtype=np.bool_)
                gone[kept.cpu().numpy()] = False
                dead[labeled.space.roots(labels[gone])] = True
    dead[0] = False  # what is frozen never goes: the comparison below then fails
    selection = Selection(labeled, dead)
    found = selection.tensor_slices()
    for name, dims in slices.items():
        own = found.get(name, {})
        if any(dim not in own or not torch.equal(own[dim], kept) for dim, kept in dims.items()):
            message = f"the kept channels of {name!r} cannot be kept alone at this input size"
            raise StructureError(message)
    return selection


def dead_labels(
    labeled: LabeledGraph, labels: Mapping[str, Vector], kept: Mapping[str, Tensor]
) -> NDArray[np.bool_]:
    """Return which labels go when only some channels of some groups are kept.

    Args:
        labeled: The labels of every tensor.
        labels: The label of each channel of each group.
        kept: Channel numbers that stay, by group name; groups not named stay whole.
    """
    dead = np.zeros(labeled.space.count, dtype=np.bool_)
    for name, channels in kept.items():
        gone = np.ones(len(labels[name]), dtype=np.bool_)
        gone[channels.cpu().numpy()] = False
        dead[labels[name][gone]] = True
    return dead

"""One operator call as the rules see it, and what the rules find out about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, fx

from coa_compress.structure.graph import (
    UNKNOWN_SIZE,
    arguments_of,
    is_tensor,
    operator_name,
    shape_of,
    sizes_of,
)
from coa_compress.structure.labels import Dims, LabelSpace, Vector

Where = tuple[str, int | None, int]
"""A dimension of an operand: argument name, index in a list argument or None, dimension."""

Restriction = Literal["select", "scatter", "zero"]
"""How an operator that mixes channels is limited to the kept ones in a full-size network: run on
the kept ones (``select``), the same and put back in place (``scatter``), others zeroed (``zero``).
"""


@dataclass(frozen=True, slots=True, eq=False)
class Mixing:
    """An operator that mixes positions which carry labels.

    Args:
        restriction: How to limit it to the kept channels.
        where: The dimensions it mixes.
    """

    restriction: Restriction
    where: tuple[Where, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Contraction:
    """A convolution or a matrix product.

    Args:
        node: The call.
        coefficient: The part of its MACs that no channel group changes.
        extents: Labels of the dimensions that the rest is a product of.
        weight: The operand that depends on parameters alone, if there is one.
        writes: Dimension of the weight that writes the output channels.
        reads: Dimension of the weight that reads the input channels; -1 when there is none.
    """

    node: fx.Node
    coefficient: int
    extents: tuple[Vector, ...]
    weight: fx.Node | None = None
    writes: int = -1
    reads: int = -1


@dataclass(slots=True)
class Findings:
    """What the rules record beside labels.

    Args:
        contractions: Convolutions and matrix products in order.
        mixing: Operators that mix channels, with how to limit them.
        restricted: Labels that cannot be removed by zeroing.
        shrinking: Grouped convolutions that lose whole groups, with their number of groups.
        unknown: Names of operators without a rule that channels enter.
    """

    contractions: list[Contraction] = field(default_factory=list)
    mixing: dict[fx.Node, Mixing] = field(default_factory=dict)
    restricted: list[Vector] = field(default_factory=list)
    shrinking: dict[fx.Node, int] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """An operator call whose output labels are wanted.

    Args:
        node: The call.
        space: Where the labels live.
        known: Labels of earlier tensors; of every output, where there are several.
        findings: Where to record what is found.
        static: Nodes that do not depend on the input of the network.
        adjustable: Tells whether an integer argument of a node is read from an attribute of a
            module, so that it can follow a width.
        rewritten: Whether the call itself is written anew for a cut, so that every integer of it
            can follow and every other number stays as it is.
    """

    node: fx.Node
    space: LabelSpace
    known: Mapping[fx.Node, tuple[Dims, ...]]
    findings: Findings
    static: set[fx.Node]
    adjustable: Callable[[fx.Node, int], bool]
    rewritten: bool = False

    @property
    def name(self) -> str:
        """Name of the operator, without namespace and overload."""
        return operator_name(self.node)

    @property
    def arguments(self) -> dict[str, object]:
        """Every argument by name."""
        return arguments_of(self.node)

    def operand(self, name: str) -> fx.Node | None:
        """Return a tensor argument, or None when it is absent or no tensor."""
        value = self.arguments.get(name)
        return value if isinstance(value, fx.Node) and is_tensor(value) else None

    def tensor(self, name: str) -> fx.Node:
        """Return a tensor argument that must be there."""
        operand = self.operand(name)
        if operand is None:
            raise UnsupportedCallError(name)
        return operand

    def dims(self, operand: fx.Node) -> list[Vector | None]:
        """Return the present labels of a tensor, one entry a dimension."""
        return [self.space.canonical(vector) for vector in self.known[operand][0]]

    def integer(self, name: str, default: int = 0) -> int:
        """Return an integer argument; a default for None."""
        value = self.arguments.get(name)
        if value is None:
            return default
        if not isinstance(value, int):
            raise UnsupportedCallError(name)
        return value

    def integers(self, name: str) -> list[int]:
        """Return a list argument of integers; a single one counts as a list."""
        value = self.arguments.get(name)
        values = [value] if isinstance(value, int) else value
        if not isinstance(values, list | tuple) or not all(isinstance(v, int) for v in values):
            raise UnsupportedCallError(name)
        return list(values)

    def operands(self, name: str) -> list[fx.Node]:
        """Return a list argument of tensors."""
        value = self.arguments.get(name)
        if not isinstance(value, list | tuple):
            raise UnsupportedCallError(name)
        nodes = [item for item in value if isinstance(item, fx.Node) and is_tensor(item)]
        if len(nodes) != len(value):
            raise UnsupportedCallError(name)
        return nodes

    @property
    def inputs(self) -> list[fx.Node]:
        """Every tensor operand."""
        return [node for node in self.node.all_input_nodes if is_tensor(node)]

    @property
    def out_shapes(self) -> list[tuple[int, ...]]:
        """The shape of every output."""
        value = self.node.meta.get("val")
        values = value if isinstance(value, list | tuple) else [value]
        return [sizes_of(v) for v in values if isinstance(v, Tensor)]

    @property
    def sized_by_data(self) -> bool:
        """Whether values decide a size of what enters or leaves, as in ``x[x > 0]``."""
        shapes = [*self.out_shapes, *map(shape_of, self.inputs)]
        return any(UNKNOWN_SIZE in shape for shape in shapes)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The shape of the first output."""
        return self.out_shapes[0]

    def shape(self, operand: fx.Node) -> tuple[int, ...]:
        """Return the shape of an operand."""
        return shape_of(operand)

    def can_follow(self, value: int) -> bool:
        """Tell whether an integer argument can be changed with a width."""
        return self.rewritten or self.adjustable(self.node, value)

    def restrict(self, labels: Vector | None) -> None:
        """Record that zeroing these channels is not removing them."""
        if labels is not None:
            self.findings.restricted.append(labels)

    def mix(self, restriction: Restriction, where: list[Where]) -> None:
        """Record that the call mixes positions along these dimensions."""
        if where:
            self.findings.mixing[self.node] = Mixing(restriction, tuple(where))


class UnsupportedCallError(Exception):
    """A rule does not cover this use of its operator; what enters is frozen."""


Rule = Callable[[Call], tuple[Dims, ...]]
"""Labels of every output of a call."""


def opaque(call: Call) -> tuple[Dims, ...]:
    """Freeze everything that enters an operator without a rule."""
    for operand in call.inputs:
        for vector in call.dims(operand):
            call.space.freeze(vector)
    return tuple((None,) * len(shape) for shape in call.out_shapes)


def axis(dim: int, rank: int) -> int:
    """Return a dimension counted from the front.

    >>> axis(-1, 4)
    3
    """
    return dim % rank if rank else 0

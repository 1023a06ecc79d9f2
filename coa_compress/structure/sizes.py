"""Integers that remember which attributes and shapes they were computed from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import fx, nn

from coa_compress.structure.graph import Place, words
from coa_compress.structure.labels import Vector

Key = tuple[str, str, int]
"""Path of a module, name of its attribute, index in a tuple attribute or -1 for an integer; or
``SHAPE``, fingerprint of a tensor and dimension, for a size that was read from a tensor."""

SHAPE = "#shape"
"""Takes the place of a module path in the key of a size that was read from a tensor."""

Formula = Callable[[Mapping[Key, int]], int]
"""What an integer is for given values of the attributes that it was computed from."""


class TaggedInt(int):
    """An integer that knows from which attributes it was computed.

    >>> width = TaggedInt.of_attribute(16, ("block", "width", -1))
    >>> half = width // 2
    >>> half, half.formula({("block", "width", -1): 10})
    (8, 5)
    """

    keys: frozenset[Key]
    formula: Formula

    @classmethod
    def of_attribute(cls, value: int, key: Key) -> "TaggedInt":
        """Return an integer that was read from an attribute."""
        return cls.computed(value, frozenset([key]), lambda values: values.get(key, value))

    @classmethod
    def computed(cls, value: int, keys: frozenset[Key], formula: Formula) -> "TaggedInt":
        """Return an integer that a formula gives."""
        tagged = cls(value)
        tagged.keys = keys
        tagged.formula = formula
        return tagged

    def __deepcopy__(self, memo: object) -> "TaggedInt":
        """Return the very same integer."""
        del memo
        return self


def _arithmetic(name: str) -> Callable[[TaggedInt, int], int]:
    plain: Callable[[int, int], int] = getattr(int, name)

    def operate(first: TaggedInt, second: int) -> int:
        result = plain(int(first), second)
        if type(second) not in (int, TaggedInt) or type(result) is not int:
            return result
        keys = first.keys | (second.keys if isinstance(second, TaggedInt) else frozenset())
        own = first.formula

        def formula(values: Mapping[Key, int]) -> int:
            other = second.formula(values) if isinstance(second, TaggedInt) else second
            return plain(own(values), other)

        return TaggedInt.computed(result, keys, formula)

    return operate


for _name in words("add radd sub rsub mul rmul floordiv rfloordiv mod rmod"):
    setattr(TaggedInt, f"__{_name}__", _arithmetic(f"__{_name}__"))
setattr(TaggedInt, "__neg__", lambda number: number * -1)  # noqa: B010


@dataclass(frozen=True, slots=True, eq=False)
class SizeRead:
    """An integer argument of a tensor operator that was computed from tagged integers.

    Args:
        call: Where and what was called, and its number among the calls alike.
        position: Its number among the integer arguments of the call.
        value: The integer.
        keys: What it was computed from.
        formula: How.
        nodes: The nodes of the graph that may be this call; one, if it is known exactly.
    """

    call: tuple[Place, str, int]
    position: int
    value: int
    keys: frozenset[Key]
    formula: Formula
    nodes: tuple[fx.Node, ...] = ()

    @property
    def attributes(self) -> frozenset[Key]:
        """The attributes that it was computed from."""
        return frozenset(key for key in self.keys if key[0] != SHAPE)


@dataclass(frozen=True, slots=True, eq=False)
class SizeReads:
    """Every integer argument that was computed from tagged integers, in the order of execution.

    Args:
        reads: The integers.
        values: Present values of the attributes and shapes.
        sources: Labels of the dimensions of shapes, where they are known.
    """

    reads: tuple[SizeRead, ...]
    values: Mapping[Key, int]
    sources: Mapping[Key, Vector | None] = field(default_factory=dict)

    def adjustable(self, node: fx.Node, value: int) -> bool:
        """Tell whether an integer argument of a call comes from attributes."""
        return any(
            read.value == value and read.attributes and node in read.nodes for read in self.reads
        )


def sized_by_parameters(module: nn.Module) -> tuple[str, ...]:
    """Return the attributes of a module that follow from the shapes of its parameters."""
    for kind, names in _SIZES:
        if isinstance(module, kind):
            return names
    return ()


_SIZES: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    (nn.modules.conv._ConvNd, ("in_channels", "out_channels", "groups")),
    (nn.Linear, ("in_features", "out_features")),
    (nn.modules.batchnorm._NormBase, ("num_features",)),
    ((nn.LayerNorm, nn.RMSNorm), ("normalized_shape",)),
    (nn.GroupNorm, ("num_channels",)),
    (nn.PReLU, ("num_parameters",)),
)

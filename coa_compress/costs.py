"""What a network costs as a function of its group widths: exact counts, and peaks of memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.int64] | NDArray[np.float64]
"""Width vectors; a tangent may be taken between whole widths."""

Widths = Mapping[str, int]
"""Channels kept in each group, by the name of the group."""


class Cost(Protocol):
    """One resource as a function of the widths, such as MACs, bytes or milliseconds."""

    @property
    def group_names(self) -> tuple[str, ...]:
        """Order of the entries of a width vector."""

    def of_vectors(self, widths: Vectors) -> NDArray[np.float64]:
        """Return the cost of width vectors, shape ``(n_vectors, n_groups)``, of each one."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of one tensor dimension: ``fixed + sum(per_channel[group] * width[group])``.

    Args:
        fixed: Positions that belong to no group.
        per_channel: Positions that each kept channel of a group adds, by group name.
    """

    fixed: int
    per_channel: Mapping[str, int]

    def __call__(self, widths: Widths) -> int:
        """Return the size at the given width of every group that adds to it."""
        return self.fixed + sum(n * widths[name] for name, n in self.per_channel.items())


@dataclass(frozen=True, slots=True)
class CostTerm:
    """``coefficient * product(extents)``: MACs of an operation, or elements of a parameter.

    Args:
        owner: Path of the module or parameter that costs this.
        coefficient: What does not depend on widths, such as output height x width.
        extents: Sizes that may depend on widths.
    """

    owner: str
    coefficient: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True)
class CostFunction:
    """A sum of cost terms, evaluated exactly and fast for many width vectors.

    Args:
        group_names: Order of the entries of a width vector.
        terms: The summands.
    """

    group_names: tuple[str, ...]
    terms: tuple[CostTerm, ...]
    _coefficients: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _fixed: NDArray[np.float64] = field(init=False, repr=False, compare=False)
    _per_channel: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        position = {name: i for i, name in enumerate(self.group_names)}
        n_terms = len(self.terms)
        most = max((len(term.extents) for term in self.terms), default=0)
        fixed = np.ones((n_terms, most))
        per_channel = np.zeros((n_terms, most, len(position)))
        for t, term in enumerate(self.terms):
            for e, extent in enumerate(term.extents):
                fixed[t, e] = extent.fixed
                for name, count in extent.per_channel.items():
                    per_channel[t, e, position[name]] = count
        coefficients = np.array([term.coefficient for term in self.terms], dtype=np.float64)
        object.__setattr__(self, "_coefficients", coefficients)
        object.__setattr__(self, "_fixed", fixed)
        object.__setattr__(self, "_per_channel", per_channel)

    def __call__(self, widths: Widths) -> int:
        """Return the cost at the given width of every group."""
        return int(self.of_vectors(np.array([[widths[name] for name in self.group_names]]))[0])

    def of_vectors(self, widths: Vectors) -> NDArray[np.float64]:
        """Return the cost of several width vectors; whole numbers held exactly up to 2**53.

        Args:
            widths: Shape ``(n_vectors, n_groups)``, in the order of ``group_names``.

        Returns:
            Shape ``(n_vectors,)``.
        """
        total: NDArray[np.float64] = self.values(widths).sum(axis=1)
        return total

    def values(self, widths: Vectors) -> NDArray[np.float64]:
        """Return the value of each term, shape ``(n_vectors, n_terms)``."""
        values: NDArray[np.float64] = self._sizes(widths).prod(axis=2) * self._coefficients
        return values

    def gradient(self, widths: Vectors, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return how much one more channel of each group adds to the sum of some terms.

        Args:
            widths: One width vector, shape ``(n_groups,)``.
            chosen: Which terms are added up, shape ``(n_terms,)``.

        Returns:
            Shape ``(n_groups,)``.
        """
        sizes = self._sizes(widths[None])[0]
        slopes = np.zeros(len(self.group_names))
        for e in range(sizes.shape[1]):
            others = np.delete(sizes, e, axis=1).prod(axis=1) * self._coefficients * chosen
            slopes += others @ self._per_channel[:, e]
        return slopes

    def by_owner(self, widths: Widths) -> dict[str, int]:
        """Return the cost of each owner at the given widths."""
        vector = np.array([[widths[name] for name in self.group_names]])
        totals: dict[str, int] = {}
        for term, value in zip(self.terms, self.values(vector)[0], strict=True):
            totals[term.owner] = totals.get(term.owner, 0) + int(value)
        return totals

    def _sizes(self, widths: Vectors) -> NDArray[np.float64]:
        n_terms, most, n_groups = self._per_channel.shape
        # one matrix product: an einsum over the same axes takes ten times as long
        flat = widths.astype(np.float64) @ self._per_channel.reshape(n_terms * most, n_groups).T
        sizes: NDArray[np.float64] = flat.reshape(len(widths), n_terms, most) + self._fixed
        return sizes


@dataclass(frozen=True)
class PeakFunction:
    """The most bytes that tensors hold at one time: the largest of several sums of terms.

    Args:
        tensors: Bytes of each tensor.
        alive: Which tensors there are at each moment, shape ``(n_moments, n_tensors)``.

    >>> pair = (CostTerm("x", 4, (Extent(0, {"a": 1}),)), CostTerm("y", 4, (Extent(3, {}),)))
    >>> peak = PeakFunction(CostFunction(("a",), pair), np.array([[True, False], [False, True]]))
    >>> peak({"a": 2}), peak({"a": 5})
    (12, 20)
    """

    tensors: CostFunction
    alive: NDArray[np.bool_]

    @property
    def group_names(self) -> tuple[str, ...]:
        """Order of the entries of a width vector."""
        return self.tensors.group_names

    def __call__(self, widths: Widths) -> int:
        """Return the peak at the given width of every group."""
        return int(self.of_vectors(np.array([[widths[name] for name in self.group_names]]))[0])

    def of_vectors(self, widths: Vectors) -> NDArray[np.float64]:
        """Return the peaks of several width vectors, shape ``(n_vectors,)``."""
        peaks: NDArray[np.float64] = self._moments(widths).max(axis=1)
        return peaks

    def gradient(self, widths: Vectors) -> NDArray[np.float64]:
        """Return how much one more channel of each group adds at the moment of the peak."""
        moment = int(self._moments(widths[None])[0].argmax())
        return self.tensors.gradient(widths, self.alive[moment])

    def _moments(self, widths: Vectors) -> NDArray[np.float64]:
        moments: NDArray[np.float64] = self.tensors.values(widths) @ self.alive.T.astype(np.float64)
        return moments


@dataclass(frozen=True, slots=True)
class CostModel:
    """What a network costs at any choice of widths.

    Args:
        macs: Multiply-accumulates of convolutions and matrix products for one example input.
        params: Elements of the parameters.
        memory_bytes: Peak memory of one pass; None unless a budget limits it.
        latency_ms: Predicted time of one pass; None unless a budget limits it.
    """

    macs: CostFunction
    params: CostFunction
    memory_bytes: PeakFunction | None = None
    latency_ms: Cost | None = None


def full_widths(names: Sequence[str], sizes: Sequence[int]) -> dict[str, int]:
    """Return the widths of the uncut network.

    >>> full_widths(["stem", "body"], [8, 16])
    {'stem': 8, 'body': 16}
    """
    return dict(zip(names, sizes, strict=True))

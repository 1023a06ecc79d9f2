"""Exact parameter and MAC counts of a network as a function of its group widths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Widths = Mapping[str, int]
"""Channels kept in each group, by the name of the group."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of one tensor dimension: ``fixed + sum(per_channel[group] * width[group])``.

    Args:
        fixed: Positions that belong to no group.
        per_channel: Positions that each kept channel of a group adds, by group name.
    """

    fixed: int
    per_channel: Mapping[str, int]


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

    def of_vectors(self, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the cost of several width vectors; whole numbers held exactly up to 2**53.

        Args:
            widths: Shape ``(n_vectors, n_groups)``, in the order of ``group_names``.

        Returns:
            Shape ``(n_vectors,)``.
        """
        sizes = self._fixed + np.einsum("teg,ng->nte", self._per_channel, widths.astype(np.float64))
        total: NDArray[np.float64] = sizes.prod(axis=2) @ self._coefficients
        return total

    def by_owner(self, widths: Widths) -> dict[str, int]:
        """Return the cost of each owner at the given widths."""
        vector = np.array([[widths[name] for name in self.group_names]], dtype=np.float64)
        sizes = self._fixed + np.einsum("teg,ng->nte", self._per_channel, vector)
        values = sizes.prod(axis=2)[0] * self._coefficients
        totals: dict[str, int] = {}
        for term, value in zip(self.terms, values, strict=True):
            totals[term.owner] = totals.get(term.owner, 0) + int(value)
        return totals


@dataclass(frozen=True, slots=True)
class CostModel:
    """What a network costs at any choice of widths.

    Args:
        macs: Multiply-accumulates of convolutions and matrix products for one example input.
        params: Elements of the parameters.
    """

    macs: CostFunction
    params: CostFunction


def full_widths(names: Sequence[str], sizes: Sequence[int]) -> dict[str, int]:
    """Return the widths of the uncut network.

    >>> full_widths(["stem", "body"], [8, 16])
    {'stem': 8, 'body': 16}
    """
    return dict(zip(names, sizes, strict=True))

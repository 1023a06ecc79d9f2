"""All width vectors that a budget allows, searched by the allocators."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coa_compress.allocation.widths import allowed_widths
from coa_compress.artifacts import Budget, ChannelGroup
from coa_compress.costs import CostFunction, CostModel
from coa_compress.errors import BudgetError, StructureError

Levels = NDArray[np.int64]
"""Index of each group's width among its allowed widths, shape ``(n_groups,)``."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a budget.

    Args:
        resource: Its name, for messages.
        cost: The resource as a function of the widths.
        keep: Fraction of the full cost that may be kept.
        full: Cost at full widths.
    """

    resource: str
    cost: CostFunction
    keep: float
    full: int


@dataclass(frozen=True, slots=True)
class WidthSpace:
    """Allowed widths of every group, and the limits that a choice must stay within.

    Args:
        names: The groups, in the order of a width vector.
        allowed: Ascending widths of each group; the last is the full width.
        limits: At least one.
        budget: Where the limits come from.
    """

    names: tuple[str, ...]
    allowed: tuple[tuple[int, ...], ...]
    limits: tuple[Limit, ...]
    budget: Budget

    @property
    def top(self) -> Levels:
        """The levels of the full widths."""
        return np.array([len(widths) - 1 for widths in self.allowed], dtype=np.int64)

    @property
    def full(self) -> NDArray[np.float64]:
        """What the full widths cost, at least 1, shape ``(n_limits,)``."""
        return np.array([max(limit.full, 1) for limit in self.limits], dtype=np.float64)

    def widths(self, levels: Levels) -> NDArray[np.int64]:
        """Return the width of each group at its level."""
        pairs = zip(self.allowed, levels, strict=True)
        return np.array([widths[level] for widths, level in pairs], dtype=np.int64)

    def by_name(self, levels: Levels) -> dict[str, int]:
        """Return the width of each group at its level, by name."""
        return dict(zip(self.names, self.widths(levels).tolist(), strict=True))

    def costs(self, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return what width vectors cost.

        Args:
            widths: Shape ``(n_vectors, n_groups)``.

        Returns:
            Shape ``(n_vectors, n_limits)``; divide by ``full`` to compare resources.
        """
        position = {name: i for i, name in enumerate(self.names)}
        columns = [
            limit.cost.of_vectors(widths[:, [position[name] for name in limit.cost.group_names]])
            for limit in self.limits
        ]
        return np.stack(columns, axis=1)

    def over(self, costs: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which limits are exceeded, same shape as the costs."""
        return costs > np.array([limit.keep * limit.full for limit in self.limits])

    def neighbors(self, levels: Levels, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the groups that can go one step down or up, and the widths after each such step.

        Args:
            levels: The present level of each group.
            step: -1 or 1.

        Returns:
            Group numbers of shape ``(n_moves,)``, and widths of shape ``(n_moves, n_groups)``.
        """
        after = levels + step
        movable = np.flatnonzero((after >= 0) & (after <= self.top))
        vectors = np.repeat(self.widths(levels)[None], len(movable), axis=0)
        for row, group in enumerate(movable):
            vectors[row, group] = self.allowed[group][after[group]]
        return movable, vectors


def width_space(groups: Sequence[ChannelGroup], costs: CostModel, budget: Budget) -> WidthSpace:
    """Return the search space of a budget.

    Raises:
        BudgetError: If even the least widths exceed a limit.
        StructureError: If groups and costs are not of the same network.
    """
    names = tuple(group.name for group in groups)
    for function in (costs.macs, costs.params):
        if set(function.group_names) != set(names):
            unknown = sorted(set(function.group_names) ^ set(names))
            message = (
                f"groups and costs differ in {', '.join(unknown)}: "
                "give both from one analysis of one network"
            )
            raise StructureError(message)
    allowed = tuple(
        allowed_widths(group.n_channels, round_to=budget.round_to, min_channels=budget.min_channels)
        for group in groups
    )
    full = {group.name: group.n_channels for group in groups}
    space = WidthSpace(names, allowed, tuple(_limits(costs, budget, full)), budget)
    _check_feasible(space)
    return space


def _limits(costs: CostModel, budget: Budget, full: dict[str, int]) -> Iterator[Limit]:
    if budget.keep_macs is not None:
        yield Limit("macs", costs.macs, budget.keep_macs, costs.macs(full))
    if budget.keep_params is not None:
        yield Limit("params", costs.params, budget.keep_params, costs.params(full))


def _check_feasible(space: WidthSpace) -> None:
    least = space.widths(np.zeros_like(space.top))
    costs = space.costs(least[None])
    for index in np.flatnonzero(space.over(costs)[0]):
        limit, budget = space.limits[index], space.budget
        message = (
            f"cannot keep {limit.keep:.1%} of {limit.resource} with channels in multiples of "
            f"{budget.round_to} (at least {budget.min_channels} a group): "
            f"the least is {costs[0, index] / space.full[index]:.1%}; "
            f"{_pinned_by(space, least, int(index))}"
        )
        raise BudgetError(message)


def _pinned_by(space: WidthSpace, least: NDArray[np.int64], index: int) -> str:
    if not space.names:
        return "no channel group of this network may be cut"
    without = np.repeat(least[None], len(least), axis=0)
    np.fill_diagonal(without, 0)
    left = space.costs(least[None])[0, index] - space.costs(without)[:, index]
    pinning = [space.names[i] for i in np.argsort(-left, kind="stable")[:3] if left[i] > 0]
    if not pinning:
        return "no channel group matters to it"
    return f"the groups that pin it: {', '.join(pinning)}"

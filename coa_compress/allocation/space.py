"""All width vectors that a budget allows, searched by the allocators."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coa_compress.allocation.widths import allowed_widths
from coa_compress.artifacts import Budget, ChannelGroup, ExpectedLosses
from coa_compress.costs import Cost, CostModel
from coa_compress.errors import BudgetError, StructureError

Levels = NDArray[np.int64]
"""Index of each group's width among its allowed widths, shape ``(n_groups,)``."""

LevelLosses = tuple[NDArray[np.float64], ...]
"""For each group the loss at each of its levels, falling to 0 at the full width."""

_SAME_TIME = 0.01
"""A width is on the stairs if it saves at least this part of what its group can save at all."""

_UNITS = {"latency": ("ms", 1.0), "memory": ("MB", 1e6)}
"""Unit of a limit that is no fraction, and how many units of the cost it is."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit of a budget.

    Args:
        resource: Its name, for messages.
        cost: The resource as a function of the widths.
        most: The most that is allowed, in the unit of the cost.
        full: Cost at full widths.
        keep: The fraction of the full cost that was asked for, or None for an amount.
    """

    resource: str
    cost: Cost
    most: float
    full: float
    keep: float | None

    @property
    def relative(self) -> bool:
        """Whether it was given as a fraction of the full cost."""
        return self.keep is not None

    @property
    def asked(self) -> str:
        """The limit in words, such as ``keep 50.0%``."""
        if self.keep is not None:
            return f"keep {self.keep:.1%}"
        return f"stay within {self.worded(self.most)}"

    def worded(self, value: float) -> str:
        """Return an amount of the resource in the words of the limit."""
        if self.relative:
            return f"{value / (self.full or 1.0):.1%}"
        unit, factor = _UNITS[self.resource]
        return f"{value / factor:.4g} {unit}"


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
        """What the full widths cost, above 0, shape ``(n_limits,)``."""
        return np.array([limit.full or 1.0 for limit in self.limits], dtype=np.float64)

    @property
    def most(self) -> NDArray[np.float64]:
        """What the limits allow, shape ``(n_limits,)``."""
        return np.array([limit.most for limit in self.limits], dtype=np.float64)

    @property
    def full_widths(self) -> dict[str, int]:
        """The full width of each group, by name."""
        return {name: widths[-1] for name, widths in zip(self.names, self.allowed, strict=True)}

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
        columns = [limit.cost.of_vectors(self.reordered(widths, limit)) for limit in self.limits]
        return np.stack(columns, axis=1)

    def reordered(self, widths: NDArray[np.int64], limit: Limit) -> NDArray[np.int64]:
        """Return width vectors in the order of the groups of a limit's cost."""
        position = {name: i for i, name in enumerate(self.names)}
        ordered: NDArray[np.int64] = widths[:, [position[n] for n in limit.cost.group_names]]
        return ordered

    def over(self, costs: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which limits are exceeded, same shape as the costs."""
        return costs > self.most

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

    def level_losses(self, losses: ExpectedLosses) -> LevelLosses:
        """Return the expected loss of each group at each of its levels."""
        pairs = zip(self.names, self.allowed, strict=True)
        return tuple(losses[name][list(widths)] for name, widths in pairs)


def width_space(groups: Sequence[ChannelGroup], costs: CostModel, budget: Budget) -> WidthSpace:
    """Return the search space of a budget.

    Where latency is limited, widths that are not on its stairs are left out: those that take about
    as long as a larger width of the same group while all other groups are whole.

    Raises:
        BudgetError: If even the least widths exceed a limit, or a limited resource has no cost.
        StructureError: If groups and costs are not of the same network.
    """
    space = any_space(groups, costs, budget)
    _check_feasible(space, groups, costs)
    return space


def any_space(groups: Sequence[ChannelGroup], costs: CostModel, budget: Budget) -> WidthSpace:
    """Return the search space of a budget, whether any choice is within it or not.

    Raises:
        BudgetError: If a limited resource has no cost.
        StructureError: If groups and costs are not of the same network.
    """
    names = tuple(group.name for group in groups)
    for function in (costs.macs, costs.params, costs.memory_bytes, costs.latency_ms):
        if function is not None and set(function.group_names) != set(names):
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
    full = np.array([group.n_channels for group in groups], dtype=np.int64)
    space = WidthSpace(names, allowed, tuple(_limits(names, costs, budget, full)), budget)
    if budget.limits_latency:
        space = _on_stairs(space)
    return space


def _limits(
    names: tuple[str, ...], costs: CostModel, budget: Budget, full: NDArray[np.int64]
) -> Iterator[Limit]:
    known: dict[str, Cost | None] = {
        "macs": costs.macs,
        "params": costs.params,
        "latency": costs.latency_ms,
        "memory": costs.memory_bytes,
    }
    fractions = {
        "macs": budget.keep_macs,
        "params": budget.keep_params,
        "latency": budget.keep_latency,
        "memory": budget.keep_memory,
    }
    amounts = {"latency": budget.max_latency_ms, "memory": budget.max_memory_mb}
    for resource, cost in known.items():
        keep, amount = fractions[resource], amounts.get(resource)
        if keep is None and amount is None:
            continue
        if cost is None:
            message = f"{resource} is limited but no cost of it is known: give a CostModel with it"
            raise BudgetError(message)
        order = [names.index(name) for name in cost.group_names]
        whole = float(cost.of_vectors(full[None][:, order])[0])
        if keep is not None:
            yield Limit(resource, cost, keep * whole, whole, keep)
        if amount is not None:
            yield Limit(resource, cost, amount * _UNITS[resource][1], whole, None)


def _on_stairs(space: WidthSpace) -> WidthSpace:
    limit = next(limit for limit in space.limits if limit.resource == "latency")
    whole = space.widths(space.top)
    stairs: list[tuple[int, ...]] = []
    for group, allowed in enumerate(space.allowed):
        vectors = np.repeat(whole[None], len(allowed), axis=0)
        vectors[:, group] = allowed
        times = limit.cost.of_vectors(space.reordered(vectors, limit))
        wider = np.append(np.minimum.accumulate(times[::-1])[::-1][1:], np.inf)
        faster = times < wider - _SAME_TIME * (times.max() - times.min())
        faster[0] = True  # what can be reached at all is no matter of taste
        stairs.append(tuple(w for w, keep in zip(allowed, faster, strict=True) if keep))
    return WidthSpace(space.names, tuple(stairs), space.limits, space.budget)


def _check_feasible(space: WidthSpace, groups: Sequence[ChannelGroup], costs: CostModel) -> None:
    least = _least_costs(space)
    for index in np.flatnonzero(space.over(least[None])[0]):
        limit, budget = space.limits[index], space.budget
        message = (
            f"cannot {limit.asked} of {limit.resource} with channels in multiples of "
            f"{budget.round_to} (at least {budget.min_channels} a group): "
            f"the least is {limit.worded(least[index])}; {pinned_by(space, int(index))}: "
            f"ask for more"
        )
        finest = any_space(groups, costs, replace(budget, round_to=1, min_channels=1))
        reached = _least_costs(finest)[index]
        if reached < least[index]:
            message += f", or lower round_to and min_channels: with 1 it is {limit.worded(reached)}"
        raise BudgetError(message)


def _least_costs(space: WidthSpace) -> NDArray[np.float64]:
    costs: NDArray[np.float64] = space.costs(space.widths(np.zeros_like(space.top))[None])[0]
    return costs


def pinned_by(space: WidthSpace, index: int) -> str:
    """Return which groups hold a limited resource up when all widths are the least ones.

    Args:
        space: The search space.
        index: The number of the limit.
    """
    if not space.names:
        return "no channel group of this network may be cut"
    least = space.widths(np.zeros_like(space.top))
    without = np.repeat(least[None], len(least), axis=0)
    np.fill_diagonal(without, 0)
    left = space.costs(least[None])[0, index] - space.costs(without)[:, index]
    pinning = [space.names[i] for i in np.argsort(-left, kind="stable")[:3] if left[i] > 0]
    if not pinning:
        return "no channel group matters to it"
    return f"the groups that pin it: {', '.join(pinning)}"

"""One threshold on the loss of a channel for all groups, whatever the channel costs."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coa_compress.allocation.space import LevelLosses, Levels, WidthSpace, width_space
from coa_compress.allocation.steps import grow
from coa_compress.artifacts import Budget, ChannelGroup, ExpectedLosses
from coa_compress.costs import CostModel


def allocate_global(
    groups: Sequence[ChannelGroup], losses: ExpectedLosses, costs: CostModel, budget: Budget
) -> dict[str, int]:
    """Return widths by one threshold: a channel goes if it loses less, in whichever group it is.

    The control that knows losses but no costs, as the global ranking of DepGraph (Fang et al.
    2023, arXiv:2301.12900): the least threshold is taken at which the widths are within the
    budget, then what is left is spent step by step. The loss of a channel is the slope of the
    convex hull of its group's losses.

    The result never exceeds the budget, and no single group can be widened by one step. With one
    limit, a larger budget never costs less.

    Args:
        groups: The channel groups.
        losses: Expected loss of each group at each width.
        costs: What widths cost.
        budget: The limits.

    Returns:
        Width by group name.

    Raises:
        BudgetError: If the budget cannot be met, with the nearest that can.
        StructureError: If groups and costs are not of the same network.

    >>> from coa_compress.costs import CostFunction, CostTerm, Extent
    >>> cost = CostFunction(("a", "b"), (CostTerm("a.w", 1, (Extent(0, {"a": 1, "b": 1}),)),))
    >>> groups = [ChannelGroup("a", 32, ()), ChannelGroup("b", 32, ())]
    >>> lost = np.arange(32.0, -1.0, -1.0)
    >>> losses = {"a": lost**2, "b": 4 * lost**2}
    >>> allocate_global(groups, losses, CostModel(cost, cost), Budget(keep_params=0.5))
    {'a': 8, 'b': 24}
    """
    space = width_space(groups, costs, budget)
    table = space.level_losses(losses)
    thresholds = np.unique(np.concatenate([[0.0], *_slopes(space, table)]))
    low, high = 0, len(thresholds)
    while low < high:
        middle = (low + high) // 2
        levels = _levels_at(space, table, float(thresholds[middle]))
        if space.over(space.costs(space.widths(levels)[None])).any():
            low = middle + 1
        else:
            high = middle
    at = float(thresholds[low]) if low < len(thresholds) else np.inf
    return space.by_name(grow(space, table, _levels_at(space, table, at)))


def _slopes(space: WidthSpace, table: LevelLosses) -> list[NDArray[np.float64]]:
    """Return for each group the loss of a channel along its convex hull, from wide to narrow."""
    return [
        np.array([slope for _, slope in _hull(np.array(widths, dtype=np.float64), losses)])
        for widths, losses in zip(space.allowed, table, strict=True)
    ]


def _hull(widths: NDArray[np.float64], losses: NDArray[np.float64]) -> list[tuple[int, float]]:
    """Return levels on the lower convex hull below the top, with the slope that leads there."""
    level = len(widths) - 1
    found: list[tuple[int, float]] = []
    while level > 0:
        slopes = (losses[:level] - losses[level]) / (widths[level] - widths[:level])
        # of equal slopes the narrowest: the threshold is the same
        level, slope = int(np.argmin(slopes)), float(slopes.min())
        found.append((level, slope))
    return found


def _levels_at(space: WidthSpace, table: LevelLosses, threshold: float) -> Levels:
    levels = space.top
    for group, (widths, losses) in enumerate(zip(space.allowed, table, strict=True)):
        for level, slope in _hull(np.array(widths, dtype=np.float64), losses):
            if slope <= threshold:
                levels[group] = level
    return levels

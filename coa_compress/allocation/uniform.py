"""One fraction of the width for all groups: the control that every allocator must beat."""

from collections.abc import Sequence

import numpy as np

from coa_compress.allocation.space import Levels, WidthSpace, width_space
from coa_compress.artifacts import Budget, ChannelGroup, ExpectedLosses
from coa_compress.costs import CostModel


def allocate_uniform(
    groups: Sequence[ChannelGroup], losses: ExpectedLosses, costs: CostModel, budget: Budget
) -> dict[str, int]:
    """Return widths that are nearly the same fraction of each full width.

    The largest fraction is taken at which the widths, rounded down to allowed ones, are within the
    budget. What is left of the budget is spent step by step on the group whose kept
    fraction is the least, as it lost most by rounding, until no step of any group fits.

    The result never exceeds the budget, and no single group can be widened by one step. With one
    limit, a larger budget never costs less; the width of one group may still fall by a step when
    another gets the room.

    Args:
        groups: The channel groups.
        losses: Not used.
        costs: What widths cost.
        budget: The limits.

    Returns:
        Width by group name.

    Raises:
        BudgetError: If the budget cannot be met, with the nearest that can.
        StructureError: If groups and costs are not of the same network.

    >>> from coa_compress.costs import CostFunction, CostTerm, Extent
    >>> cost = CostFunction(("a", "b"), (CostTerm("a.w", 1, (Extent(0, {"a": 1, "b": 1}),)),))
    >>> groups = [ChannelGroup("a", 32, ()), ChannelGroup("b", 16, ())]
    >>> allocate_uniform(groups, {}, CostModel(cost, cost), Budget(keep_params=0.5))
    {'a': 16, 'b': 8}
    """
    del losses
    space = width_space(groups, costs, budget)
    return space.by_name(_fill(space, _largest_common_fraction(space)))


def _largest_common_fraction(space: WidthSpace) -> Levels:
    fractions = np.unique([width / widths[-1] for widths in space.allowed for width in widths])
    low, high = 0, len(fractions) - 1
    best = np.zeros_like(space.top)
    while low <= high:
        middle = (low + high) // 2
        levels = _levels_at(space, float(fractions[middle]))
        if space.over(space.costs(space.widths(levels)[None])).any():
            high = middle - 1
        else:
            best, low = levels, middle + 1
    return best


def _levels_at(space: WidthSpace, fraction: float) -> Levels:
    counts = [
        sum(width / widths[-1] <= fraction for width in widths) - 1 for widths in space.allowed
    ]
    return np.maximum(np.array(counts, dtype=np.int64), 0)


def _fill(space: WidthSpace, levels: Levels) -> Levels:
    full = space.widths(space.top)
    while True:
        movable, vectors = space.neighbors(levels, 1)
        movable = movable[~space.over(space.costs(vectors)).any(axis=1)]
        if len(movable) == 0:
            return levels
        kept = space.widths(levels)[movable] / full[movable]
        levels = levels.copy()
        levels[movable[np.argmin(kept)]] += 1

"""The widths with the least expected loss within a budget: a multiple-choice knapsack."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coa_compress.allocation.space import LevelLosses, Levels, WidthSpace, width_space
from coa_compress.allocation.steps import grow, shrink, swap, total_loss
from coa_compress.artifacts import Budget, ChannelGroup, ExpectedLosses
from coa_compress.costs import CostModel

_BUCKETS = 4000
_ROUNDS = 8
_HARDER = 2.0
"""How fast the weight of an exceeded limit grows from round to round."""
_LEAST = 1e-300


def allocate_knapsack(
    groups: Sequence[ChannelGroup], losses: ExpectedLosses, costs: CostModel, budget: Budget
) -> dict[str, int]:
    """Return the widths with the least expected loss that dynamic programming and swaps find.

    Costs are products of widths, which no knapsack can hold; their logarithm is nearly a sum.
    From the present widths, each level of each group gets the logarithm of what the cost becomes
    when that group alone changes; this separable knapsack is solved exactly, weights rounded up
    to buckets. Its answer is repaired and improved by swaps at exact costs, and the knapsack is
    set up again around it, until nothing changes. Several limits are mixed with weights that grow
    for those that are exceeded. The answer is never worse than that of ``greedy``, where it
    starts, by the losses it is given.

    The result never exceeds the budget, and no single group can be widened by one step.

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
    >>> cost = CostFunction(("a", "b"), (CostTerm("w", 1, (Extent(0, {"a": 3, "b": 1}),)),))
    >>> groups = [ChannelGroup("a", 32, ()), ChannelGroup("b", 32, ())]
    >>> lost = np.arange(32.0, -1.0, -1.0)
    >>> losses = {"a": lost, "b": lost}
    >>> allocate_knapsack(groups, losses, CostModel(cost, cost), Budget(keep_params=0.75))
    {'a': 16, 'b': 32}
    """
    space = width_space(groups, costs, budget)
    table = space.level_losses(losses)
    best = grow(space, table, shrink(space, table, space.top))
    weights = np.full(len(space.limits), 1.0 / len(space.limits))
    around, slack = best, 0.0
    for _ in range(_ROUNDS):
        chosen = _solve(space, table, around, weights, slack)
        over = _log(_at(space, chosen)) - _log(space.most)
        weights = weights * np.exp(np.clip(_HARDER * over, -5.0, 5.0))
        weights /= weights.sum()
        around = swap(space, table, shrink(space, table, chosen))
        if total_loss(table, around) < total_loss(table, best):
            best = around
        missed = -float(over.max())
        if abs(missed) < 1.0 / _BUCKETS:
            break
        slack += missed
    improved = swap(space, table, best)
    return space.by_name(improved)


def _at(space: WidthSpace, levels: Levels) -> NDArray[np.float64]:
    costs: NDArray[np.float64] = space.costs(space.widths(levels)[None])[0]
    return costs


def _log(costs: NDArray[np.float64]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(np.maximum(costs, _LEAST))
    return logs


def _solve(
    space: WidthSpace,
    table: LevelLosses,
    around: Levels,
    weights: NDArray[np.float64],
    slack: float,
) -> Levels:
    """Return the levels with the least loss within one mixed limit, linear in logarithms."""
    base = _log(_at(space, around))
    room = slack + float(weights @ (_log(space.most) - base))
    relative: list[NDArray[np.float64]] = []
    for group, allowed in enumerate(space.allowed):
        vectors = np.repeat(space.widths(around)[None], len(allowed), axis=0)
        vectors[:, group] = allowed
        grown = (_log(space.costs(vectors)) - base) @ weights
        room -= float(grown.min())
        relative.append(grown - grown.min())
    if room <= 0:
        return np.zeros_like(around)
    bucket = room / _BUCKETS
    needs = [
        np.minimum(np.ceil(grown / bucket - 1e-9), _BUCKETS + 1).astype(np.int64)
        for grown in relative
    ]
    return _multiple_choice(table, needs, _BUCKETS)


def _multiple_choice(table: LevelLosses, needs: Sequence[NDArray[np.int64]], room: int) -> Levels:
    """Return the level of each group with the least sum of losses, by dynamic programming.

    Args:
        table: Loss of each group at each level.
        needs: Whole number of buckets that each level takes; 0 for at least one level.
        room: Buckets there are.
    """
    least = np.zeros(room + 1)
    choices: list[NDArray[np.int64]] = []
    for losses, need in zip(table, needs, strict=True):
        options = np.full((len(losses), room + 1), np.inf)
        for level, (loss, n_buckets) in enumerate(zip(losses, need.tolist(), strict=True)):
            if n_buckets <= room:
                options[level, n_buckets:] = least[: room + 1 - n_buckets] + loss
        choices.append(options.argmin(axis=0))
        least = options.min(axis=0)
    levels = np.zeros(len(choices), dtype=np.int64)
    left = room
    for group in reversed(range(len(choices))):
        levels[group] = choices[group][left]
        left -= int(needs[group][levels[group]])
    return levels

"""Remove what matters least for what it costs, step by step."""

from collections.abc import Sequence

from coa_compress.allocation.space import width_space
from coa_compress.allocation.steps import grow, shrink
from coa_compress.artifacts import Budget, ChannelGroup, ExpectedLosses
from coa_compress.costs import CostModel


def allocate_greedy(
    groups: Sequence[ChannelGroup], losses: ExpectedLosses, costs: CostModel, budget: Budget
) -> dict[str, int]:
    """Return widths found by removing what loses least for the cost it saves.

    From the full widths, the group whose next step down has the least loss per saved cost is
    narrowed, until all limits hold; the cost counted is that of the limits still exceeded, each
    relative to the full network, and exact at the present widths. Then steps are taken back, the
    greatest gain per cost first, until none fits.

    The result never exceeds the budget, and no single group can be widened by one step. With one
    limit, a larger budget never costs less; the width of one group may still fall.
    Losses of different groups are compared as they are: ``taylor`` and ``sensitivity`` have one
    unit for all groups, while for ``magnitude`` the comparison is a heuristic.

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

    >>> import numpy as np
    >>> from coa_compress.costs import CostFunction, CostTerm, Extent
    >>> cost = CostFunction(("a", "b"), (CostTerm("a.w", 1, (Extent(0, {"a": 1, "b": 1}),)),))
    >>> groups = [ChannelGroup("a", 32, ()), ChannelGroup("b", 32, ())]
    >>> lost = np.arange(32.0, -1.0, -1.0)
    >>> losses = {"a": lost, "b": 9 * lost}
    >>> allocate_greedy(groups, losses, CostModel(cost, cost), Budget(keep_params=0.75))
    {'a': 16, 'b': 32}
    """
    space = width_space(groups, costs, budget)
    table = space.level_losses(losses)
    return space.by_name(grow(space, table, shrink(space, table, space.top)))

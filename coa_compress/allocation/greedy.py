"""Remove what matters least for what it costs, step by step."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coa_compress.allocation.space import Levels, WidthSpace, width_space
from coa_compress.artifacts import Budget, ChannelGroup, Scores
from coa_compress.costs import CostModel

_CROWDING = 2
"""Exponent of the penalty for taking much of one group; see ``removal_losses``."""

StepLosses = tuple[NDArray[np.float64], ...]
"""For each group the loss at each of its levels, falling to 0 at the full width."""


def allocate_greedy(
    groups: Sequence[ChannelGroup], scores: Scores, costs: CostModel, budget: Budget
) -> dict[str, int]:
    """Return widths found by removing what loses the least score for the cost it saves.

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
        scores: Shape ``(n_channels,)`` for each group, from 0.
        costs: What widths cost.
        budget: The limits.

    Returns:
        Width by group name.

    Raises:
        BudgetError: If the budget cannot be met, with the nearest that can.
        StructureError: If groups and costs are not of the same network.

    >>> import torch
    >>> from coa_compress.costs import CostFunction, CostTerm, Extent
    >>> cost = CostFunction(("a", "b"), (CostTerm("a.w", 1, (Extent(0, {"a": 1, "b": 1}),)),))
    >>> groups = [ChannelGroup("a", 32, ()), ChannelGroup("b", 32, ())]
    >>> scores = {"a": torch.ones(32), "b": torch.full((32,), 9.0)}
    >>> allocate_greedy(groups, scores, CostModel(cost, cost), Budget(keep_params=0.75))
    {'a': 16, 'b': 32}
    """
    space = width_space(groups, costs, budget)
    losses = tuple(
        removal_losses(scores[name].double().cpu().numpy())[list(widths)]
        for name, widths in zip(space.names, space.allowed, strict=True)
    )
    return space.by_name(_grow(space, losses, _shrink(space, losses)))


def removal_losses(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the loss that a group is expected to cause at each width.

    ``loss[w]`` is the sum of the ``n - w`` lowest scores times ``(n / w) ** 2``. Scores say what
    one channel matters while all others are there; the fewer are left, the less can they stand in
    for those that went, so that the sum alone would empty single layers.

    Args:
        scores: Shape ``(n_channels,)``, from 0.

    Returns:
        Shape ``(n_channels + 1,)``, never rising with the width; 0 at the full width.

    >>> removal_losses(np.array([1.0, 1.0, 2.0, 4.0])).tolist()
    [128.0, 64.0, 8.0, 1.7777777777777777, 0.0]
    """
    n_channels = len(scores)
    removed = np.concatenate([np.cumsum(np.sort(scores))[::-1], [0.0]])
    widths = np.maximum(np.arange(n_channels + 1), 1)
    losses: NDArray[np.float64] = removed * (n_channels / widths) ** _CROWDING
    return losses


def _shrink(space: WidthSpace, losses: StepLosses) -> Levels:
    levels = space.top
    while True:
        now = space.costs(space.widths(levels)[None])
        over = space.over(now)[0]
        if not over.any():
            return levels
        movable, vectors = space.neighbors(levels, -1)
        saved = ((now - space.costs(vectors)) / space.full)[:, over].sum(axis=1)
        lost = np.array([losses[g][levels[g] - 1] - losses[g][levels[g]] for g in movable])
        price = np.divide(lost, saved, out=np.full_like(saved, np.inf), where=saved > 0)
        # of equal prices, as those of dead channels, the one that saves most
        levels[movable[np.lexsort((-saved, price))[0]]] -= 1


def _grow(space: WidthSpace, losses: StepLosses, levels: Levels) -> Levels:
    levels = levels.copy()
    while True:
        now = space.costs(space.widths(levels)[None])
        movable, vectors = space.neighbors(levels, 1)
        after = space.costs(vectors)
        fits = ~space.over(after).any(axis=1)
        if not fits.any():
            return levels
        movable = movable[fits]
        added = ((after[fits] - now) / space.full).sum(axis=1)
        gained = np.array([losses[g][levels[g]] - losses[g][levels[g] + 1] for g in movable])
        value = np.divide(gained, added, out=np.full_like(added, np.inf), where=added > 0)
        levels[movable[np.argmax(value)]] += 1

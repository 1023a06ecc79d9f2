"""Single steps of widths: down while a limit is exceeded, up while there is room, and swaps."""

import numpy as np
from numpy.typing import NDArray

from coa_compress.allocation.space import LevelLosses, Levels, WidthSpace

_MOST_TRIES = 96
"""How many of the most promising swaps are costed exactly in one round."""
_REACH = 3
"""How many levels a group may move in one swap."""


def total_loss(losses: LevelLosses, levels: Levels) -> float:
    """Return the sum of the expected losses of all groups."""
    return float(sum(table[level] for table, level in zip(losses, levels, strict=True)))


def shrink(space: WidthSpace, losses: LevelLosses, levels: Levels) -> Levels:
    """Return levels within the budget: the step that loses least for what it saves goes first."""
    levels = levels.copy()
    while True:
        now = space.costs(space.widths(levels)[None])
        over = space.over(now)[0]
        if not over.any():
            return levels
        movable, vectors = space.neighbors(levels, -1)
        if len(movable) == 0:
            return levels
        saved = ((now - space.costs(vectors)) / space.full)[:, over].sum(axis=1)
        lost = np.array([losses[g][levels[g] - 1] - losses[g][levels[g]] for g in movable])
        price = np.divide(lost, saved, out=np.full_like(saved, np.inf), where=saved > 0)
        # of equal prices, as those of dead channels, the one that saves most
        levels[movable[np.lexsort((-saved, price))[0]]] -= 1


def grow(space: WidthSpace, losses: LevelLosses, levels: Levels) -> Levels:
    """Return levels of which none can be one higher: the greatest gain per cost goes first."""
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


def swap(space: WidthSpace, losses: LevelLosses, levels: Levels, *, rounds: int = 40) -> Levels:
    """Return levels that no tried exchange between two groups improves, and none can be raised.

    In each round the exchanges that would gain most are costed exactly, and the best one that is
    within the budget is made.

    Args:
        space: The search space.
        losses: Loss of each group at each level.
        levels: Within the budget.
        rounds: Most exchanges.
    """
    levels = grow(space, losses, levels)
    for _ in range(rounds):
        gains, moves = _exchanges(losses, levels)
        best = np.argsort(-gains, kind="stable")[:_MOST_TRIES]
        if len(best) == 0:
            return levels
        tried = np.array([_moved(levels, moves[i]) for i in best])
        fits = ~space.over(space.costs(np.array([space.widths(t) for t in tried]))).any(axis=1)
        if not fits.any():
            return levels
        levels = grow(space, losses, tried[int(np.argmax(fits))])
    return levels


def _exchanges(losses: LevelLosses, levels: Levels) -> tuple[NDArray[np.float64], list[Levels]]:
    """Return what every pair of one group up and one down gains, where it gains anything."""
    ups: list[tuple[float, int, int]] = []
    downs: list[tuple[float, int, int]] = []
    for group, table in enumerate(losses):
        level = int(levels[group])
        for step in range(1, _REACH + 1):
            if level + step < len(table):
                ups.append((float(table[level] - table[level + step]), group, step))
            if level - step >= 0:
                downs.append((float(table[level - step] - table[level]), group, -step))
    if not ups or not downs:
        return np.zeros(0), []
    gained, lost = np.array(ups), np.array(downs)
    net = gained[:, 0][:, None] - lost[:, 0][None]
    net[gained[:, 1][:, None] == lost[:, 1][None]] = -np.inf
    rows, columns = np.nonzero(net > 1e-12 * max(1.0, float(np.abs(gained[:, 0]).max())))
    moves = [
        np.array([*ups[i][1:], *downs[j][1:]], dtype=np.int64)
        for i, j in zip(rows, columns, strict=True)
    ]
    return net[rows, columns], moves


def _moved(levels: Levels, move: Levels) -> Levels:
    after = levels.copy()
    after[move[0]] += move[1]
    after[move[2]] += move[3]
    return after

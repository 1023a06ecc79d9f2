"""How good any choice of widths could be: a lower bound on the expected loss."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from coa_compress.allocation.space import LevelLosses, Levels, Limit, WidthSpace
from coa_compress.costs import CostFunction, PeakFunction

_ROUNDS = 16
_HALVINGS = 22
_LEAST_PRICE = 1e-30
_ROUNDING = 1e-13
_SIDES = (1 - 1e-5, 1 + 1e-5)
_PARTS = (0.02, 0.1, 0.3, 0.7, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """``slopes @ log(widths) <= room`` holds for every width vector within a limit."""

    slopes: NDArray[np.float64]
    room: float


def least_loss(
    space: WidthSpace, losses: LevelLosses, levels: Levels
) -> tuple[float, tuple[str, ...]]:
    """Return a loss that no allowed widths within some limits can be below, and those limits.

    MACs, parameters and peak memory are sums of products of widths with coefficients from 0 (or
    the largest of several such sums), so that the logarithm of the cost is convex in the
    logarithms of the widths (as in geometric programming). Its tangent at any point is therefore
    never above it, and replacing a limit by its tangents only adds choices. The Lagrangian dual
    of that separable problem is a lower bound on the loss of every choice of allowed widths
    within those limits, not only of the linearized problem. A measured latency has no such form;
    it is left out, which only lowers the bound.

    Args:
        space: The search space.
        losses: Loss of each group at each level.
        levels: A good choice, where the first tangents are taken.

    Returns:
        The bound, from 0, and the resources it accounts for; 0 and none when only latency is
        limited.
    """
    exact = [
        limit
        for limit in space.limits
        if isinstance(limit.cost, CostFunction | PeakFunction) and limit.full > 0
    ]
    if not exact or not space.names:
        return 0.0, ()
    problem = _Relaxed.of(space, losses)
    point = np.log(space.widths(levels))
    best, weights, price = 0.0, np.full(len(exact), 1.0 / len(exact)), 1.0
    for round_number in range(_ROUNDS):
        cuts = [_tangent(space, limit, np.exp(point)) for limit in exact]
        value, price, weights = _best_mixture(problem, cuts, weights, price)
        best = max(best, value)
        corner = problem.corner(_mixed(cuts, weights), price)
        # the best tangent is that at the solution of the relaxed problem, where this converges
        point = point + (corner - point) * 2 / (round_number + 4)
    return best, tuple(dict.fromkeys(limit.resource for limit in exact))


def _mixed(cuts: list[_Cut], weights: NDArray[np.float64]) -> _Cut:
    """Return what follows from several cuts, each taken with a weight from 0."""
    slopes = weights @ np.array([cut.slopes for cut in cuts])
    return _Cut(slopes, float(weights @ np.array([cut.room for cut in cuts])))


def _best_mixture(
    problem: "_Relaxed", cuts: list[_Cut], weights: NDArray[np.float64], price: float
) -> tuple[float, float, NDArray[np.float64]]:
    """Return the best bound from one mixture of cuts, searched along each of them in turn."""
    value, price = problem.dual(_mixed(cuts, weights), price)
    if len(cuts) == 1:
        return value, price, weights
    for index in range(len(cuts)):
        for part in _PARTS:
            moved = (1 - part) * weights
            moved[index] += part
            tried, its_price = problem.dual(_mixed(cuts, moved), price)
            if tried > value:
                value, price, weights = tried, its_price, moved
    return value, price, weights


def _tangent(space: WidthSpace, limit: Limit, widths: NDArray[np.float64]) -> _Cut:
    position = {name: i for i, name in enumerate(space.names)}
    vector = widths[[position[name] for name in limit.cost.group_names]]
    cost = limit.cost
    value = float(cost.of_vectors(vector[None])[0])
    if isinstance(cost, PeakFunction):
        gradient = cost.gradient(vector)
    elif isinstance(cost, CostFunction):
        gradient = cost.gradient(vector, np.ones(len(cost.terms), dtype=np.bool_))
    else:
        gradient = np.zeros(len(vector))
    by_name = dict(zip(cost.group_names, gradient * vector / value, strict=True))
    slopes = np.array([by_name[name] for name in space.names])
    logs = np.log(widths)
    room = float(np.log(limit.most / value) + slopes @ logs)
    # a choice that is exactly at the limit must not seem to be over it
    return _Cut(slopes, room + _ROUNDING * (1.0 + float(np.abs(slopes) @ np.abs(logs))))


@dataclass(frozen=True, slots=True, eq=False)
class _Relaxed:
    """Losses and logarithms of the widths of all levels, shape ``(n_groups, n_levels)``."""

    losses: NDArray[np.float64]
    logs: NDArray[np.float64]

    @classmethod
    def of(cls, space: WidthSpace, losses: LevelLosses) -> "_Relaxed":
        most = max(len(table) for table in losses)
        padded = np.full((len(losses), most), np.inf)
        logs = np.zeros((len(losses), most))
        for group, (table, allowed) in enumerate(zip(losses, space.allowed, strict=True)):
            padded[group, : len(table)] = table
            logs[group, : len(table)] = np.log(allowed)
        return cls(padded, logs)

    def corner(self, cut: _Cut, price: float) -> NDArray[np.float64]:
        """Return the logarithms of the widths that are best at the price of the best bound."""
        rows = np.arange(len(self.logs))
        # on the two sides of the best price the choice is on the two sides of the limit
        sides = [self._priced(cut, price * side).argmin(axis=1) for side in _SIDES]
        low, high = (self.logs[rows, levels] for levels in sides)
        over, under = (float(cut.slopes @ logs) - cut.room for logs in (low, high))
        part = over / (over - under) if over > 0 > under else 0.5
        return np.asarray(low + part * (high - low))

    def dual(self, cut: _Cut, start: float) -> tuple[float, float]:
        """Return the best lower bound that one cut gives, and the price of the limit there.

        Any price from 0 gives a bound; the dual is concave in it, and its slope is how far the
        best choice at a price is over the limit.

        Args:
            cut: What widths must satisfy.
            start: A price near the best.
        """
        low, high = start / 4, start
        while low > _LEAST_PRICE and self._excess(cut, low) <= 0:
            low, high = low / 64, low
        while high < 1 / _LEAST_PRICE and self._excess(cut, high) > 0:
            low, high = high, 8 * high
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            low, high = (middle, high) if self._excess(cut, middle) > 0 else (low, middle)
        value, price = max((self._at(cut, price), price) for price in (0.0, low, high))
        return value, max(price, _LEAST_PRICE)

    def _priced(self, cut: _Cut, price: float) -> NDArray[np.float64]:
        priced: NDArray[np.float64] = self.losses + price * cut.slopes[:, None] * self.logs
        return priced

    def _at(self, cut: _Cut, price: float) -> float:
        return float(self._priced(cut, price).min(axis=1).sum()) - price * cut.room

    def _excess(self, cut: _Cut, price: float) -> float:
        """Return the slope of the dual: how far the best choice at a price is over the limit."""
        levels = self._priced(cut, price).argmin(axis=1)
        return float(cut.slopes @ self.logs[np.arange(len(levels)), levels]) - cut.room

"""Limits that only a measurement can settle: choose widths, build, measure, choose again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from coa_compress.artifacts import Allocation, Budget, MeasuredLimit
from coa_compress.errors import BudgetError

Choose = Callable[[Budget], Allocation]
"""Return an allocation within a budget by predictions; raise a ``BudgetError`` where none is."""

Measure = Callable[[Allocation], Mapping[str, MeasuredLimit]]
"""Build a student and return what it takes of each resource that must be measured."""

_UNITS = {"latency": "ms", "memory": "MB"}
_CLOSE = 0.97
"""A student that takes this part of what is allowed is near enough to the limit."""
_NARROW = 0.005
"""The search ends between two tightenings that differ by less than this part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopRules:
    """How long and how carefully measured limits are searched.

    Args:
        students: Most students that are built and measured.
        margins: For each measured resource the part of its limit that must stay free, as
            measurements vary.
    """

    students: int
    margins: Mapping[str, float]


def allocate_measured(
    budget: Budget, choose: Choose, narrowest: Allocation, measure: Measure, rules: LoopRules
) -> Allocation:
    """Return the allocation with the least expected loss whose student was measured within limits.

    Predictions choose the widths; the student is built and measured. The limit that predictions
    are held against is tightened where the student takes too much and loosened where it leaves
    room, by the quotient of what is allowed and what was measured, between the tightenings that
    are known to be too loose and too tight. Only a student that was measured within every limit
    is returned, with its measurements.

    Args:
        budget: The limits.
        choose: Chooses widths by predictions.
        narrowest: The least widths that are allowed, tried where predictions see no way.
        measure: Builds and measures.
        rules: How long and how carefully.

    Raises:
        BudgetError: If no student was measured within the limits, with the least that was.
    """
    search = _Search(budget, rules)
    best: Allocation | None = None
    while search.left > 0:
        try:
            allocation, forced = choose(search.tightened()), False
        except BudgetError:
            allocation, forced = narrowest, True
        again = _key(allocation) in search.measured
        fills = search.fills(allocation, measure)
        within = max(fills.values()) <= 1
        if within and (best is None or (allocation.loss or 0.0) <= (best.loss or 0.0)):
            best = replace(allocation, measured=search.measured[_key(allocation)])
        # within and chosen again: another limit or the full widths stand in the way
        done = within and (again or max(fills.values()) >= _CLOSE)
        if forced or done or not search.move_(fills):
            break
    if best is None:
        raise BudgetError(search.unreachable())
    return best


def _key(allocation: Allocation) -> tuple[int, ...]:
    return tuple(allocation.widths.values())


@dataclass(slots=True, eq=False)
class _Search:
    """What is known so far, and how much tighter than asked predictions are held.

    Args:
        budget: The limits as asked.
        rules: How long and how carefully.
        factors: By resource, what the limit is multiplied with.
        tight: The largest factor with a student within the limit.
        loose: The smallest factor with a student beyond it.
        measured: What students took, by their widths.
    """

    budget: Budget
    rules: LoopRules
    factors: dict[str, float] = field(init=False)
    tight: dict[str, float] = field(init=False)
    loose: dict[str, float] = field(init=False)
    measured: dict[tuple[int, ...], Mapping[str, MeasuredLimit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.factors = dict.fromkeys(self.rules.margins, 1.0)
        self.tight = dict.fromkeys(self.rules.margins, 0.0)
        self.loose = dict.fromkeys(self.rules.margins, float("inf"))

    @property
    def left(self) -> int:
        """How many students may still be measured."""
        return self.rules.students - len(self.measured)

    def tightened(self) -> Budget:
        """Return the budget that predictions are held against."""

        def part(value: float | None, name: str, most: float) -> float | None:
            return None if value is None else min(value * self.factors.get(name, 1.0), most)

        return replace(
            self.budget,
            keep_latency=part(self.budget.keep_latency, "latency", 1.0),
            max_latency_ms=part(self.budget.max_latency_ms, "latency", float("inf")),
            keep_memory=part(self.budget.keep_memory, "memory", 1.0),
            max_memory_mb=part(self.budget.max_memory_mb, "memory", float("inf")),
        )

    def fills(self, allocation: Allocation, measure: Measure) -> dict[str, float]:
        """Return how much of what is allowed, margin taken off, a student takes of each resource.

        Widths that were measured before are not measured again.
        """
        key = _key(allocation)
        if key not in self.measured:
            rounds = len(self.measured) + 1
            found = measure(allocation)
            self.measured[key] = {n: replace(one, rounds=rounds) for n, one in found.items()}
        margins = self.rules.margins
        return {n: self._use(n, one) / (1 - margins[n]) for n, one in self.measured[key].items()}

    def move_(self, fills: Mapping[str, float]) -> bool:
        """Change the factors after a measurement; return False when nothing is left to try."""
        exceeded = [name for name, fill in fills.items() if fill > 1]
        moved = False
        for name in exceeded or fills:
            now = self.factors[name]
            if exceeded:
                self.loose[name] = min(self.loose[name], now)
                wanted = now / max(fills[name], 1 + 3 * _NARROW)
            else:
                self.tight[name] = max(self.tight[name], now)
                wanted = now / fills[name]
            low, high = self.tight[name], self.loose[name]
            self.factors[name] = wanted if low < wanted < high else (low + min(high, 2 * low)) / 2
            moved = moved or abs(self.factors[name] - now) > _NARROW * now
        return moved

    def unreachable(self) -> str:
        """Return the message for a budget that no student was measured within."""
        least = min(self.measured.values(), key=lambda one: max(map(self._use, one, one.values())))
        name = max(least, key=lambda one: self._use(one, least[one]))
        keeps = {"latency": self.budget.keep_latency, "memory": self.budget.keep_memory}
        amounts = {"latency": self.budget.max_latency_ms, "memory": self.budget.max_memory_mb}
        keep, amount, one = keeps[name], amounts[name], least[name]
        asked = f"keep {keep:.1%}" if keep is not None else f"stay within {amount:g} {_UNITS[name]}"
        return (
            f"cannot {asked} of {name} on {one.device} with {one.threads} threads: of "
            f"{len(self.measured)} students that were built the least takes {one.kept:.1%} "
            f"({one.student:.4g} {_UNITS[name]}): ask for more, or lower round_to or min_channels"
        )

    def _use(self, name: str, measured: MeasuredLimit) -> float:
        """Return what was measured as a part of what is allowed."""
        keeps = {"latency": self.budget.keep_latency, "memory": self.budget.keep_memory}
        amounts = {"latency": self.budget.max_latency_ms, "memory": self.budget.max_memory_mb}
        keep, amount = keeps[name], amounts[name]
        uses = [] if keep is None else [measured.kept / keep]
        uses += [] if amount is None else [measured.student / amount]
        return max(uses)

"""The loop that builds and measures: what it accepts, how it searches, what it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coa_compress.allocation.allocate import make_allocation, narrowest_allocation
from coa_compress.allocation.closed_loop import LoopRules, allocate_measured
from coa_compress.artifacts import Budget, ChannelGroup, MeasuredLimit
from coa_compress.costs import CostFunction, CostModel, CostTerm, Extent, PeakFunction
from coa_compress.errors import BudgetError

GROUPS = tuple(ChannelGroup(name, 64, ()) for name in "abc")
SCORES = {
    g.name: torch.rand(64, generator=torch.Generator().manual_seed(i)).double()
    for i, g in enumerate(GROUPS)
}
TIMES = CostFunction(
    ("a", "b", "c"),
    tuple(
        CostTerm(pair, 1, (Extent(3, {pair[0]: 1}), Extent(0, {pair[1]: 1})))
        for pair in ("ab", "bc", "ca")
    ),
)
BYTES = PeakFunction(TIMES, torch.ones(1, 3, dtype=torch.bool).numpy())
COSTS = CostModel(TIMES, TIMES, memory_bytes=BYTES, latency_ms=TIMES)
FULL = {"a": 64, "b": 64, "c": 64}
RULES = LoopRules(students=8, margins={"latency": 0.02})


class Machine:
    """Takes a fixed time beside a part of what is predicted, and counts how often it is asked."""

    def __init__(self, fixed, factor, resource="latency"):
        self.fixed, self.factor, self.resource = fixed, factor, resource
        self.asked = []

    def time(self, widths):
        return self.fixed + self.factor * TIMES(widths)

    def __call__(self, allocation):
        self.asked.append(allocation.widths)
        student, teacher = self.time(allocation.widths), self.time(FULL)
        limit = MeasuredLimit(
            kept=student / teacher,
            kept_p10=student / teacher,
            kept_p90=student / teacher,
            student=student,
            teacher=teacher,
            predicted=1.0,
            rounds=1,
            device="cpu",
            threads=1,
        )
        return {self.resource: limit}


def solve(budget, machine, rules=RULES):
    def choose(within):
        return make_allocation(GROUPS, SCORES, COSTS, within)

    narrowest = narrowest_allocation(GROUPS, SCORES, COSTS, budget)
    return allocate_measured(budget, choose, narrowest, machine, rules)


@settings(deadline=None, max_examples=15)
@given(keep=st.floats(0.05, 1.0), fixed=st.floats(0, 4000), factor=st.floats(0.3, 3.0))
def test_what_is_returned_was_measured_within_the_limit_whatever_the_machine(keep, fixed, factor):
    machine = Machine(fixed, factor)
    least = machine.time({"a": 8, "b": 8, "c": 8}) / machine.time(FULL)
    if least > keep:
        with pytest.raises(BudgetError, match="the least takes"):
            solve(Budget(keep_latency=keep), machine)
        return
    if least > 0.9 * keep:
        return  # there may be nothing between the margin and the least

    allocation = solve(Budget(keep_latency=keep), machine)

    measured = allocation.measured["latency"]
    assert allocation.widths in machine.asked
    assert measured.kept == pytest.approx(machine.time(allocation.widths) / machine.time(FULL))
    assert measured.kept <= keep
    assert len(machine.asked) <= 8


def test_a_fixed_part_that_predictions_missed_is_found_and_the_room_is_used():
    allocation = solve(Budget(keep_latency=0.5), Machine(fixed=2000, factor=1.0))

    assert 0.42 < allocation.measured["latency"].kept <= 0.49
    assert 1 < allocation.measured["latency"].rounds <= 8


def test_predictions_that_are_too_careful_are_loosened():
    machine = Machine(fixed=0, factor=0.5)
    most_ms = 0.5 * TIMES(FULL)

    allocation = solve(Budget(max_latency_ms=0.4 * TIMES(FULL)), machine)

    assert TIMES(allocation.widths) > 1.2 * 0.4 * TIMES(FULL)
    assert allocation.measured["latency"].student <= most_ms


def test_what_no_student_reaches_is_an_error_with_the_least_measured():
    machine = Machine(fixed=1_000_000, factor=1.0)
    words = (
        r"cannot keep 50\.0% of latency on cpu with 1 threads: of \d students that were built "
        r"the least takes 98\.\d% \(1e\+06 ms\): ask for more, or lower round_to"
    )
    with pytest.raises(BudgetError, match=words):
        solve(Budget(keep_latency=0.5), machine)

    assert machine.asked[-1] == {"a": 8, "b": 8, "c": 8}


def test_where_predictions_see_no_way_the_narrowest_student_is_tried():
    machine = Machine(fixed=0, factor=0.01)

    allocation = solve(Budget(max_latency_ms=100.0), machine)

    assert allocation.allocator in {"narrowest", "knapsack"}
    assert allocation.measured["latency"].student <= 98.0


def test_an_exact_limit_holds_beside_a_measured_one():
    budget = Budget(keep_params=0.2, max_memory_mb=1.0)
    rules = LoopRules(students=4, margins={"memory": 0.0})

    allocation = solve(budget, Machine(0, 1e-6, "memory"), rules)

    assert allocation.params <= 0.2 * allocation.teacher_params
    assert allocation.measured["memory"].student <= 1.0

"""Laws of allocators on random cost models, and facts on small ones."""

import time
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coa_compress.allocation.allocate import make_allocation, narrowest_allocation
from coa_compress.allocation.bound import least_loss
from coa_compress.allocation.catalog import ALLOCATORS
from coa_compress.allocation.greedy import allocate_greedy
from coa_compress.allocation.knapsack import allocate_knapsack
from coa_compress.allocation.losses import evened, expected_losses, removal_losses
from coa_compress.allocation.space import width_space
from coa_compress.allocation.threshold import allocate_global
from coa_compress.allocation.uniform import allocate_uniform
from coa_compress.allocation.widths import allowed_widths, select_channels
from coa_compress.artifacts import Budget, ChannelGroup, SensitivityCurve
from coa_compress.costs import CostFunction, CostModel, CostTerm, Extent
from coa_compress.curves import curve_losses
from coa_compress.errors import BudgetError, NoEffectWarning, RegistryError, StructureError

FEW = settings(deadline=None, max_examples=30)


def chain(widths, *, size=64, fixed=3):
    """Costs and groups of a chain of 3x3 convolutions from and to ``fixed`` channels."""
    names = tuple(f"conv{i}" for i in range(len(widths)))
    extents = [Extent(fixed, {}), *(Extent(0, {name: 1}) for name in names), Extent(fixed, {})]
    pairs = list(zip(extents[1:], extents[:-1], strict=True))
    nine = Extent(9, {})
    params = tuple(CostTerm(f"w{i}", 1, (a, b, nine)) for i, (a, b) in enumerate(pairs))
    macs = tuple(
        CostTerm(f"w{i}", (size >> min(i, 3)) ** 2, (a, b, nine)) for i, (a, b) in enumerate(pairs)
    )
    groups = tuple(ChannelGroup(n, w, ()) for n, w in zip(names, widths, strict=True))
    return groups, CostModel(CostFunction(names, macs), CostFunction(names, params))


@st.composite
def problems(draw):
    """Random multilinear costs, also quadratic in one group, with groups, scores and a budget."""
    n_groups = draw(st.integers(1, 4))
    names = tuple("abcd"[:n_groups])
    groups = tuple(ChannelGroup(name, draw(st.integers(1, 40)), ()) for name in names)
    extent = st.builds(
        Extent,
        st.integers(0, 3),
        st.dictionaries(st.sampled_from(names), st.integers(1, 4), min_size=1, max_size=2),
    )
    term = st.builds(
        CostTerm,
        st.just("w"),
        st.integers(1, 99),
        st.lists(extent, min_size=1, max_size=2).map(tuple),
    )
    functions = [
        CostFunction(
            draw(st.permutations(names).map(tuple)), tuple(draw(st.lists(term, min_size=1)))
        )
        for _ in range(2)
    ]
    values = st.floats(0, 10, allow_subnormal=False)
    scores = {
        g.name: torch.tensor(
            draw(st.lists(values, min_size=g.n_channels, max_size=g.n_channels)),
            dtype=torch.float64,
        )
        for g in groups
    }
    keep = st.one_of(st.none(), st.floats(0.01, 1.0))
    keep_macs, keep_params = draw(keep), draw(keep)
    budget = Budget(
        keep_macs=keep_macs if keep_macs or keep_params else 0.5,
        keep_params=keep_params,
        round_to=draw(st.sampled_from([1, 2, 4, 8])),
        min_channels=draw(st.sampled_from([1, 4, 8])),
    )
    return groups, expected_losses(groups, scores), CostModel(*functions), budget


def fits(costs, budget, widths, full):
    return all(
        keep is None or cost(widths) <= keep * cost(full)
        for cost, keep in ((costs.macs, budget.keep_macs), (costs.params, budget.keep_params))
    )


@pytest.mark.parametrize("name", ALLOCATORS.names())
@FEW
@given(problem=problems())
def test_a_budget_is_never_exceeded_and_no_group_can_be_widened(name, problem):
    groups, losses, costs, budget = problem
    full = {g.name: g.n_channels for g in groups}
    allowed = {
        g.name: allowed_widths(
            g.n_channels, round_to=budget.round_to, min_channels=budget.min_channels
        )
        for g in groups
    }
    least = {group: widths[0] for group, widths in allowed.items()}
    if not fits(costs, budget, least, full):
        with pytest.raises(BudgetError, match=r"cannot keep .* the least is"):
            ALLOCATORS.get(name)(groups, losses, costs, budget)
        return

    widths = ALLOCATORS.get(name)(groups, losses, costs, budget)

    assert list(widths) == [g.name for g in groups]
    assert fits(costs, budget, widths, full)
    for group, width in widths.items():
        wider = [w for w in allowed[group] if w > width]
        assert width in allowed[group]
        assert not wider or not fits(costs, budget, {**widths, group: wider[0]}, full)


# the knapsack is a heuristic on products of widths: its loss is near the least, not monotone
@pytest.mark.parametrize("name", ["uniform", "greedy", "global"])
@FEW
@given(problem=problems(), more=st.floats(0.01, 1.0))
def test_a_larger_budget_never_costs_less(name, problem, more):
    groups, losses, costs, budget = problem
    low, high = sorted((budget.keep_macs or budget.keep_params, more))
    rules = {"round_to": budget.round_to, "min_channels": budget.min_channels}
    try:
        small = ALLOCATORS.get(name)(groups, losses, costs, Budget(keep_macs=low, **rules))
    except BudgetError:
        return

    large = ALLOCATORS.get(name)(groups, losses, costs, Budget(keep_macs=high, **rules))

    assert costs.macs(small) <= costs.macs(large)


@pytest.mark.parametrize("name", ALLOCATORS.names())
@FEW
@given(problem=problems())
def test_a_budget_of_everything_keeps_everything(name, problem):
    groups, losses, costs, _ = problem

    widths = ALLOCATORS.get(name)(groups, losses, costs, Budget(keep_macs=1.0, keep_params=1.0))

    assert widths == {g.name: g.n_channels for g in groups}


def loss_of(losses, widths):
    return sum(losses[name][width] for name, width in widths.items())


@settings(deadline=None, max_examples=60)
@given(problem=problems())
def test_the_knapsack_is_never_worse_than_greedy_nor_better_than_the_bound(problem):
    groups, losses, costs, budget = problem
    try:
        space = width_space(groups, costs, budget)
    except BudgetError:
        return
    greedy = loss_of(losses, allocate_greedy(groups, losses, costs, budget))

    loss = loss_of(losses, allocate_knapsack(groups, losses, costs, budget))

    bound, _ = least_loss(space, space.level_losses(losses), space.top)
    assert bound * (1 - 1e-9) <= loss <= greedy * (1 + 1e-9)


def test_the_bound_of_a_choice_exactly_at_the_limit_is_not_that_of_its_rounding():
    group = ChannelGroup("a", 2, (), restricted=False)
    cost = CostFunction(("a",), (CostTerm("w", 1, (Extent(0, {"a": 1}),)),))
    budget = Budget(keep_macs=0.5, round_to=1, min_channels=1)
    space = width_space((group,), CostModel(macs=cost, params=cost), budget)

    bound, _ = least_loss(space, space.level_losses({"a": np.zeros(3)}), space.top)

    assert bound == 0.0


@settings(deadline=None, max_examples=30)
@given(problem=problems())
def test_the_bound_is_below_every_choice_within_the_budget(problem):
    groups, losses, costs, budget = problem
    try:
        space = width_space(groups, costs, budget)
    except BudgetError:
        return
    if np.prod([len(widths) for widths in space.allowed]) > 3000:
        return
    full = {g.name: g.n_channels for g in groups}
    choices = (dict(zip(space.names, widths, strict=True)) for widths in product(*space.allowed))
    least = min(loss_of(losses, w) for w in choices if fits(costs, budget, w, full))

    bound, bounded_by = least_loss(space, space.level_losses(losses), space.top)

    assert bound <= least * (1 + 1e-9)
    free = all(limit.full == 0 for limit in space.limits)
    assert set(bounded_by) <= {limit.resource for limit in space.limits}
    assert bounded_by or free


def test_the_knapsack_finds_the_best_of_all_on_a_chain():
    groups, costs = chain([48, 64, 96, 64, 48], size=32)
    generator = torch.Generator().manual_seed(1)
    scores = {g.name: torch.rand(g.n_channels, generator=generator).double() ** 3 for g in groups}
    losses = expected_losses(groups, scores)
    budget = Budget(keep_macs=0.4)
    space = width_space(groups, costs, budget)
    vectors = np.array(list(product(*space.allowed)))
    within = vectors[~space.over(space.costs(vectors)).any(axis=1)]
    best = min(loss_of(losses, dict(zip(space.names, v, strict=True))) for v in within)

    loss = loss_of(losses, allocate_knapsack(groups, losses, costs, budget))

    assert loss == pytest.approx(best)


def test_the_knapsack_of_a_deep_network_is_near_the_bound_and_fast():
    generator = torch.Generator().manual_seed(0)
    groups, costs = chain([64] * 60, size=32)
    scores = {
        g.name: torch.rand(g.n_channels, generator=generator).double()
        * 10 ** (2 * torch.rand(1, generator=generator).double())
        for g in groups
    }
    began = time.perf_counter()

    allocation = make_allocation(groups, scores, costs, Budget(keep_macs=0.2), "knapsack")

    assert time.perf_counter() - began < 20  # 1 s on an idle core
    assert allocation.bounded_by == ("macs",)
    assert allocation.gap < 0.02
    greedy = make_allocation(groups, scores, costs, Budget(keep_macs=0.2), "greedy")
    assert allocation.loss < greedy.loss
    assert allocation.least_loss == pytest.approx(greedy.least_loss, rel=0.01)


def test_the_global_threshold_is_blind_to_cost():
    groups, costs = chain([64, 64], size=64)
    even = expected_losses(groups, {g.name: torch.linspace(0, 1, 64) for g in groups})

    widths = allocate_global(groups, even, costs, Budget(keep_macs=0.3))

    assert abs(widths["conv0"] - widths["conv1"]) <= 8


@FEW
@given(
    steps=st.lists(st.tuples(st.integers(1, 9), st.floats(0, 5, allow_subnormal=False)), min_size=1)
)
def test_losses_of_a_curve_pass_its_points_and_never_rise_with_the_width(steps):
    widths = np.cumsum([step for step, _ in steps]).tolist()
    measured = [value for _, value in steps[:-1]] + [0.0]

    losses = curve_losses(SensitivityCurve(tuple(widths), tuple(measured)))

    assert losses.shape == (widths[-1] + 1,)
    assert losses[-1] == 0
    assert np.isfinite(losses).all()
    assert (np.diff(losses) <= 0).all()
    highest = np.maximum.accumulate(measured[::-1])[::-1]
    np.testing.assert_allclose(losses[widths], highest, rtol=1e-12, atol=1e-12)


def test_measured_curves_decide_the_widths_and_scores_the_channels():
    groups, costs = chain([32, 32], size=8)
    scores = {"conv0": torch.arange(32.0), "conv1": torch.arange(32.0)}
    curves = {
        "conv0": SensitivityCurve((8, 32), (1.0, 0.0)),
        "conv1": SensitivityCurve((8, 32), (0.001, 0.0)),
    }

    allocation = make_allocation(groups, scores, costs, Budget(keep_params=0.5), curves=curves)

    assert allocation.widths["conv0"] == 32
    assert allocation.kept["conv1"].tolist() == list(range(32 - allocation.widths["conv1"], 32))


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        ({}, "no sensitivity curve for group 'conv0'"),
        ({"conv0": SensitivityCurve((8, 24), (1.0, 0.0))}, "ends at 24 channels, expected 16"),
    ],
)
def test_curves_of_another_network_are_an_error(curves, words):
    groups, costs = chain([16])
    scores = {"conv0": torch.ones(16)}
    with pytest.raises(StructureError, match=words):
        make_allocation(groups, scores, costs, Budget(keep_macs=0.5), curves=curves)


@pytest.mark.parametrize("resource", ["latency", "memory"])
def test_a_limit_on_what_has_no_cost_is_an_error(resource):
    groups, costs = chain([16])
    budget = Budget(**{f"keep_{resource}": 0.5})
    with pytest.raises(BudgetError, match=f"{resource} is limited but no cost of it is known"):
        allocate_uniform(groups, {}, costs, budget)


def stairs_cost():
    """Time in ms of one group that takes as long with 24 channels as with 32."""
    return Stairs(("conv0",), {8: 1.0, 16: 2.0, 24: 4.0, 32: 4.0})


@dataclass(frozen=True)
class Stairs:
    group_names: tuple[str, ...]
    times: dict

    def of_vectors(self, widths):
        return np.array([self.times.get(int(w), 0.0) for w in widths[:, 0]])


def test_only_widths_on_the_stairs_of_latency_are_used():
    groups, costs = chain([32])
    costs = replace(costs, latency_ms=stairs_cost())

    space = width_space(groups, costs, Budget(max_latency_ms=4.0))

    assert space.allowed == ((8, 16, 32),)
    with pytest.warns(NoEffectWarning, match="4 ms of latency were asked for, and the teacher"):
        make_allocation(groups, {"conv0": torch.ones(32)}, costs, Budget(max_latency_ms=4.0))


def test_an_amount_that_cannot_be_reached_is_said_in_its_unit():
    groups, costs = chain([32])
    costs = replace(costs, latency_ms=stairs_cost())
    words = r"cannot stay within 0\.5 ms of latency .* the least is 1 ms; .* pin it: conv0"
    with pytest.raises(BudgetError, match=words):
        allocate_uniform(groups, {}, costs, Budget(max_latency_ms=0.5))


@FEW
@given(n=st.integers(1, 70), round_to=st.integers(1, 16), min_channels=st.integers(1, 20))
def test_allowed_widths_keep_the_rules(n, round_to, min_channels):
    widths = allowed_widths(n, round_to=round_to, min_channels=min_channels)

    assert widths[-1] == n
    assert list(widths) == sorted(set(widths))
    assert all(w % round_to == 0 and w >= min_channels for w in widths[:-1])
    missed = set(range(min_channels, n)) - set(widths)
    assert all(w % round_to for w in missed)


@FEW
@given(values=st.lists(st.integers(0, 5), min_size=1, max_size=20), data=st.data())
def test_selected_channels_are_the_best_sorted_and_of_equal_ones_the_first(values, data):
    width = data.draw(st.integers(0, len(values)))

    kept = select_channels(torch.tensor(values, dtype=torch.float64), width).tolist()

    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert kept == sorted(ranked[:width])


def test_uniform_keeps_one_fraction_where_widths_allow():
    groups, costs = chain([64, 128, 64])

    widths = allocate_uniform(groups, {}, costs, Budget(keep_params=0.26))

    assert widths == {"conv0": 32, "conv1": 64, "conv2": 32}


def test_uniform_spends_the_rest_step_by_step():
    groups, costs = chain([32, 32])

    widths = allocate_uniform(groups, {}, costs, Budget(keep_params=0.5))

    assert widths == {"conv0": 24, "conv1": 16}


def test_greedy_removes_what_matters_least():
    groups, costs = chain([32, 32, 32], size=8)
    scores = {
        name: torch.full((32,), value)
        for name, value in (("conv0", 5.0), ("conv1", 0.001), ("conv2", 5.0))
    }

    losses = expected_losses(groups, scores)
    widths = allocate_greedy(groups, losses, costs, Budget(keep_params=0.6))

    assert widths["conv1"] < widths["conv0"]
    assert widths["conv1"] < widths["conv2"]


def test_removal_losses_start_at_zero_and_grow_faster_and_faster():
    losses = removal_losses(torch.ones(8, dtype=torch.float64).numpy())

    steps = losses[:-1] - losses[1:]
    assert losses[-1] == 0
    assert all(steps[1:-1] >= steps[2:])
    assert all(steps > 0)


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=5), st.floats(0, 1))
@FEW
def test_evened_losses_are_closer_to_each_other_and_keep_their_shape(scales, evenness):
    shape = removal_losses(np.linspace(0.1, 1, 16))
    losses = {f"conv{i}": scale * shape for i, scale in enumerate(scales)}

    found = evened(losses, evenness)

    for name, loss in losses.items():
        np.testing.assert_allclose(found[name] / found[name][0], loss / loss[0])
    before, after = (np.log([loss[0] for loss in one.values()]) for one in (losses, found))
    np.testing.assert_allclose(np.diff(after), (1 - evenness) * np.diff(before), atol=1e-9)


def test_losses_that_are_not_evened_or_are_zero_stay_as_they_are():
    losses = {"idle": np.zeros(9), "conv": removal_losses(np.ones(8))}

    assert evened(losses, 0.0) is losses
    assert not evened(losses, 1.0)["idle"].any()
    np.testing.assert_allclose(evened(losses, 1.0)["conv"], losses["conv"])


def test_evened_groups_get_widths_by_what_they_cost():
    groups, costs = chain([64, 64])
    scores = {"conv0": torch.full((64,), 1e-6), "conv1": torch.ones(64)}
    one, other = (
        make_allocation(groups, scores, costs, Budget(keep_params=0.5), evenness=evenness).widths
        for evenness in (0.0, 1.0)
    )

    assert one == {"conv0": 24, "conv1": 64}
    assert other["conv0"] > one["conv0"]
    assert other["conv1"] < one["conv1"]


@pytest.mark.parametrize("evenness", [0.0, 0.5, 1.0])
def test_the_loss_of_the_narrowest_is_of_the_same_kind_as_that_of_a_choice(evenness):
    groups, costs = chain([64, 64])
    scores = {"conv0": torch.full((64,), 1e-6), "conv1": torch.ones(64)}
    budget = Budget(keep_params=0.03)

    chosen = make_allocation(groups, scores, costs, budget, evenness=evenness)
    narrowest = narrowest_allocation(groups, scores, costs, budget, evenness=evenness)

    assert chosen.widths == narrowest.widths == {"conv0": 8, "conv1": 8}
    assert chosen.loss == narrowest.loss
    assert chosen.evenness == narrowest.evenness == evenness


def test_two_limits_both_hold():
    groups, costs = chain([64, 96, 128, 96, 64])
    scores = {
        g.name: torch.rand(g.n_channels, generator=torch.Generator().manual_seed(0)) for g in groups
    }

    budget = Budget(keep_macs=0.5, keep_params=0.2)
    for name in ALLOCATORS.names():
        allocation = make_allocation(groups, scores, costs, budget, name)
        assert allocation.macs <= 0.5 * allocation.teacher_macs
        assert allocation.params <= 0.2 * allocation.teacher_params
        assert allocation.params > 0.15 * allocation.teacher_params


@pytest.mark.parametrize("name", ALLOCATORS.names())
def test_what_is_impossible_names_the_nearest_possible_and_what_pins_it(name):
    groups, costs = chain([16, 64, 12])
    losses = expected_losses(groups, {g.name: torch.ones(g.n_channels) for g in groups})
    least = costs.params({"conv0": 8, "conv1": 8, "conv2": 8})
    full = costs.params({"conv0": 16, "conv1": 64, "conv2": 12})
    finest = costs.params({"conv0": 1, "conv1": 1, "conv2": 1})

    with pytest.raises(BudgetError) as caught:
        ALLOCATORS.get(name)(groups, losses, costs, Budget(keep_params=0.05))

    assert str(caught.value) == (
        "cannot keep 5.0% of params with channels in multiples of 8 (at least 8 a group): "
        f"the least is {least / full:.1%}; the groups that pin it: conv1, conv0, conv2: ask for "
        f"more, or lower round_to and min_channels: with 1 it is {finest / full:.1%}"
    )
    tightest = Budget(keep_params=1e-4, round_to=1, min_channels=1)
    with pytest.raises(BudgetError, match=r"pin it: conv0, conv2, conv1: ask for more$"):
        ALLOCATORS.get(name)(groups, losses, costs, tightest)


def test_a_network_without_groups_says_so():
    cost = CostFunction((), (CostTerm("w", 1, (Extent(3, {}),)),))
    with pytest.raises(BudgetError, match=r"the least is 100\.0%; no channel group"):
        allocate_uniform([], {}, CostModel(cost, cost), Budget(keep_macs=0.5))


def test_groups_and_costs_of_two_networks_are_an_error():
    groups, _ = chain([16])
    _, costs = chain([16, 16])
    with pytest.raises(StructureError, match="groups and costs differ in conv1"):
        allocate_uniform(groups, {}, costs, Budget(keep_macs=0.5))


def test_an_allocation_counts_what_it_keeps():
    groups, costs = chain([16, 24])
    scores = {g.name: torch.arange(float(g.n_channels)) for g in groups}

    allocation = make_allocation(groups, scores, costs, Budget(keep_macs=0.5), "uniform")

    assert allocation.teacher_widths == {"conv0": 16, "conv1": 24}
    assert allocation.macs == costs.macs(allocation.widths)
    assert allocation.params == costs.params(allocation.widths)
    assert allocation.teacher_macs == costs.macs(allocation.teacher_widths)
    assert allocation.teacher_params == costs.params(allocation.teacher_widths)
    for name, kept in allocation.kept.items():
        width = allocation.widths[name]
        n_channels = allocation.teacher_widths[name]
        assert kept.tolist() == list(range(n_channels - width, n_channels))
        assert kept.dtype == torch.int64


def test_a_network_that_costs_nothing_warns():
    groups, _ = chain([16])
    free = CostFunction(("conv0",), ())
    with pytest.warns(NoEffectWarning, match=r"nothing was removed though 50\.0%"):
        make_allocation(
            groups, {"conv0": torch.ones(16)}, CostModel(free, free), Budget(keep_macs=0.5)
        )


@pytest.mark.parametrize(
    ("scores", "words"),
    [({}, "no scores for group 'conv0'"), ({"conv0": torch.ones(3)}, r"shape \(3,\), expected")],
)
def test_scores_of_another_network_are_an_error(scores, words):
    groups, costs = chain([16])
    with pytest.raises(StructureError, match=words):
        make_allocation(groups, scores, costs, Budget(keep_macs=0.5))


def test_a_plug_in_that_breaks_the_budget_is_caught(monkeypatch):
    groups, costs = chain([16])
    monkeypatch.setitem(ALLOCATORS._objects, "all", lambda *_: {"conv0": 16})
    with pytest.raises(BudgetError, match=r"all: macs: 100.0% exceed 50.0%"):
        make_allocation(groups, {"conv0": torch.ones(16)}, costs, Budget(keep_macs=0.5), "all")


def test_an_unknown_allocator_is_named_with_its_neighbor():
    groups, costs = chain([16])
    with pytest.raises(RegistryError, match="did you mean greedy"):
        make_allocation(groups, {"conv0": torch.ones(16)}, costs, Budget(keep_macs=0.5), "greedie")

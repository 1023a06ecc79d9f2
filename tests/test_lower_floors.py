"""Settings, costs, the registry and hooks: what everything else stands on."""

import importlib.metadata
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import hooks_of
from torch import nn

from coa_compress import registry
from coa_compress.artifacts import Allocation, Batch, Budget
from coa_compress.costs import CostFunction, CostTerm, Extent, full_widths
from coa_compress.errors import BudgetError, ModelError, RegistryError, SettingError
from coa_compress.hooks import captured_outputs
from coa_compress.registry import Registry, did_you_mean
from coa_compress.settings import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitInterval,
    check_ranges,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    keep: Fraction = 0.5
    limit: Fraction | None = None
    mix: UnitInterval = 0.5
    count: PositiveInt = 1
    rest: NonNegativeInt = 0
    rate: PositiveFloat = 1.0
    weight: NonNegativeFloat = 0.0
    flag: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("keep", 0.0, "must be above 0.0, got 0.0"),
        ("keep", 1.0001, "must be at most 1.0, got 1.0001"),
        ("keep", float("nan"), "must be above 0.0, got nan"),
        ("limit", -0.5, "must be above 0.0, got -0.5"),
        ("mix", -0.1, "must be at least 0.0, got -0.1"),
        ("mix", 1.1, "must be at most 1.0, got 1.1"),
        ("count", 0, "must be at least 1, got 0"),
        ("rest", -1, "must be at least 0, got -1"),
        ("rate", 0.0, "must be above 0.0, got 0.0"),
        ("weight", -1e-9, "must be at least 0.0, got -1e-09"),
    ],
)
def test_a_value_out_of_range_names_field_rule_and_value(field, value, rule):
    with pytest.raises(SettingError, match=rf"^Sample\.{field} {rule}$"):
        Sample(**{field: value})


def test_the_edges_of_ranges_are_allowed():
    edges = Sample(keep=1.0, limit=1.0, mix=0.0, count=1, rest=0, rate=1e-12, weight=0.0)

    assert (edges.keep, edges.mix) == (1.0, 0.0)
    assert Sample(limit=None).limit is None


def test_a_budget_needs_a_limit():
    with pytest.raises(BudgetError, match="no budget given: set keep_macs or keep_params"):
        Budget()
    with pytest.raises(SettingError, match=r"Budget\.keep_macs must be at most 1\.0, got 2"):
        Budget(keep_macs=2.0)


def test_an_allocation_tells_its_widths():
    kept = {"a": torch.tensor([0, 3]), "b": torch.arange(5)}
    allocation = Allocation(
        kept=kept,
        teacher_widths={"a": 4, "b": 5},
        macs=1,
        params=1,
        teacher_macs=2,
        teacher_params=2,
    )

    assert allocation.widths == {"a": 2, "b": 5}


def test_a_batch_moves_with_and_without_a_target():
    both, one = Batch(torch.ones(1), torch.zeros(1)).to("cpu"), Batch(torch.ones(1)).to("cpu")

    assert torch.equal(both.input, torch.ones(1))
    assert both.target is not None
    assert one.target is None


def convolution(name, source, target, area):
    """The MACs of a 3 x 3 convolution between two groups."""
    extents = (Extent(0, {source: 1}), Extent(0, {target: 1}))
    return CostTerm(name, 9 * area, extents)


@settings(deadline=None, max_examples=30)
@given(
    widths=st.lists(
        st.tuples(st.integers(1, 500), st.integers(1, 500), st.integers(1, 500)),
        min_size=1,
        max_size=5,
    ),
    area=st.integers(1, 10**6),
)
def test_costs_of_many_width_vectors_are_the_exact_sums(widths, area):
    terms = (
        convolution("one", "a", "b", area),
        CostTerm("two", 2, (Extent(3, {"a": 1, "b": 4}), Extent(7, {}))),
        CostTerm("three", 5, ()),
    )
    cost = CostFunction(("a", "b", "c"), terms)

    expected = [9 * area * a * b + 2 * (3 + a + 4 * b) * 7 + 5 for a, b, _ in widths]
    assert cost.of_vectors(np.array(widths)).tolist() == expected
    one = dict(zip("abc", widths[0], strict=True))
    assert cost(one) == expected[0]
    assert sum(cost.by_owner(one).values()) == expected[0]
    assert cost.by_owner(one)["three"] == 5


def test_a_cost_without_terms_is_0():
    cost = CostFunction(("a",), ())

    assert cost({"a": 3}) == 0
    assert cost.by_owner({"a": 3}) == {}


def test_the_terms_of_one_owner_are_added():
    cost = CostFunction(("a",), (CostTerm("x", 2, (Extent(0, {"a": 1}),)), CostTerm("x", 1, ())))

    assert cost.by_owner({"a": 4}) == {"x": 9}
    assert full_widths(["a"], [4]) == {"a": 4}
    with pytest.raises(ValueError, match="shorter"):
        full_widths(["a", "b"], [4])


def test_a_name_is_registered_once():
    things: Registry[object] = Registry("thing", group="coa_compress.no_such_group")
    things.register("one")(1)

    with pytest.raises(RegistryError, match="thing 'one' is registered twice: choose another"):
        things.register("one")(2)
    assert things.get("one") == 1
    assert things.names() == ["one"]


def test_an_unknown_name_names_the_closest():
    things: Registry[object] = Registry("thing", group="coa_compress.no_such_group")
    things.register("magnitude")(1)

    with pytest.raises(RegistryError, match="no thing named 'magnitud': did you mean magnitude"):
        things.get("magnitud")
    with pytest.raises(LookupError, match=r"known: magnitude$"):
        things.get("zzz")


def test_a_plug_in_is_listed_without_and_loaded_with_being_asked_for(monkeypatch):
    point = importlib.metadata.EntryPoint("far", "math:tau", "coa_compress.things")

    def entry_points(*, group, name="far"):
        return [point] if (group, name) == ("coa_compress.things", "far") else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    things: Registry[object] = Registry("thing", group="coa_compress.things")
    things.register("near")(1)

    assert things.names() == ["far", "near"]
    assert things.get("far") == pytest.approx(6.283185307179586)


@settings(deadline=None, max_examples=30)
@given(known=st.sets(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=5))
def test_a_known_name_is_its_own_closest_match(known):
    name = sorted(known)[0]

    assert did_you_mean(name, known).startswith(f"did you mean {name}? known: ")


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_is_left(fails):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    image = torch.zeros(1, 5 if fails else 3, 4, 4)

    with suppress(RuntimeError), captured_outputs(net, ["0", "1"]) as outputs:
        assert hooks_of(net) == 2
        net(image)

    assert hooks_of(net) == 0
    assert set(outputs) == (set() if fails else {"0", "1"})


def test_no_hook_is_left_when_a_path_is_wrong():
    net = nn.Sequential(nn.Conv2d(3, 4, 1))

    with (
        pytest.raises(ModelError, match="no module 'head' in Sequential"),
        captured_outputs(net, ["0", "head"]),
    ):
        pass

    assert hooks_of(net) == 0


def test_the_latest_output_is_kept_and_other_hooks_stay():
    net = nn.Sequential(nn.Conv2d(1, 1, 1))
    net[0].register_forward_hook(lambda *_: None)

    with captured_outputs(net, ["0"]) as outputs:
        net(torch.zeros(1, 1, 2, 2))
        last = net(torch.ones(1, 1, 2, 2))

    assert torch.equal(outputs["0"], last)
    assert hooks_of(net) == 1

"""The latency table: sizes, interpolation, fit and file; and the limits that rest on it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from coa_compress.allocation.space import width_space
from coa_compress.artifacts import Budget
from coa_compress.errors import DataError, SettingError
from coa_compress.profiling.execution import Execution
from coa_compress.profiling.latency_model import OperationTimes, fit_times
from coa_compress.profiling.latency_table import (
    check_place,
    fitted_table,
    geometry,
    latency_model,
    load_table,
    save_table,
    time_operations,
)
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.profiling.profile import Sweep, profile_network
from coa_compress.profiling.timing import compare_latency
from coa_compress.protocols import no_progress
from coa_compress.stages.limits import Place, limited_costs
from coa_compress.structure.analysis import analyze
from tests.nets import Gate, randomize_

CPU = torch.device("cpu")


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1), Gate(16, 12), nn.ReLU(), nn.Conv2d(16, 3, 1)
        )


@pytest.fixture(scope="module")
def place():
    net, example = randomize_(Net()).eval(), torch.rand(1, 3, 16, 16)
    return Place(analyze(net, example), net, example)


@pytest.fixture(scope="module")
def table(place):
    workload = place.structure.workload()
    operations = time_operations(workload, place.full, CPU, no_progress)
    half = {name: width // 2 for name, width in place.full.items()}
    return fitted_table(workload, operations, [(place.full, 2.0), (half, 1.2)], CPU)


def test_every_operation_is_timed_at_many_sizes_also_a_depthwise_one(place, table):
    workload = place.structure.workload()
    kinds = [one.kind for one in workload.operations]

    assert kinds == ["conv2d"] * 5
    assert len(table.operations) == len({geometry(o, place.full) for o in workload.operations})
    depthwise = next(o for o in workload.operations if o.grouped is not None)
    times = table.operations[geometry(depthwise, place.full)]
    assert times.sizes[0][-1] == 24
    assert all((sweep > 0).all() for one in table.operations.values() for sweep in one.sweeps)


def test_a_table_survives_its_file(place, table, tmp_path):
    save_table(table, tmp_path / "table.json")

    again = load_table(tmp_path / "table.json")

    assert again.fit == table.fit
    vectors = np.array([[8, 6], [16, 12]])
    workload = place.structure.workload()
    ours, theirs = (
        latency_model(t, workload, place.full).of_vectors(vectors) for t in (table, again)
    )
    np.testing.assert_array_equal(ours, theirs)
    assert ours[0] < ours[1]


def test_a_table_of_another_network_device_or_kind_is_an_error(place, table, tmp_path):
    other = analyze(nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 3, 1)), torch.rand(1, 3, 8, 8))
    with pytest.raises(SettingError, match=r"the latency table lacks conv2d .* of '0': build it"):
        latency_model(table, other.workload(), {"0": 9})
    with pytest.raises(SettingError, match=r"built on cpu with 77 threads, this is cpu with"):
        check_place(replace(table, threads=77), CPU)
    file = tmp_path / "table.json"
    with pytest.raises(DataError, match=r"table.json is no latency table: .* No such file"):
        load_table(file)
    file.write_text("{}")
    with pytest.raises(DataError, match="is no latency table: 'format': write one by"):
        load_table(file)
    file.write_text(json.dumps({"format": 0}))
    with pytest.raises(DataError, match="has format 0, expected 1: build it again"):
        load_table(file)


def test_interpolation_passes_what_was_measured_stairs_and_all():
    sizes = np.array([8.0, 16.0, 24.0, 32.0])
    stairs = np.array([1.0, 2.0, 4.0, 4.0])
    grid = np.array([[0.5, 1.0], [2.0, 4.0]])
    ends = np.array([8.0, 32.0])
    times = OperationTimes((sizes, sizes), (stairs, stairs), (ends, ends), grid)

    full = np.full(4, 32.0)
    np.testing.assert_allclose(times.at(np.stack([sizes, full], 1))[1:], stairs[1:])
    np.testing.assert_allclose(times.at(np.stack([full, sizes], 1)), stairs)


def test_the_fit_finds_the_parts_it_was_made_of():
    operations, traffic = np.array([8.0, 5.0, 3.0, 1.0]), np.array([90.0, 70.0, 20.0, 10.0])

    fit = fit_times(operations, traffic, 1.5 * operations + 2.0 + 0.03 * traffic)

    assert fit.operations == pytest.approx(1.5)
    assert fit.fixed_ms == pytest.approx(2.0)
    assert fit.ms_per_element == pytest.approx(0.03)
    clipped = fit_times(operations, traffic, np.array([8.0, 5.0, 3.0, 1.0]))
    assert clipped.fixed_ms == 0.0
    assert clipped.ms_per_element == 0.0


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_predicted_memory_is_close_to_what_is_measured(place, keep):
    kept = {n: torch.arange(int(keep * width)) for n, width in place.full.items()}
    widths = {name: len(channels) for name, channels in kept.items()}
    student = place.structure.cut(kept).student

    predicted = place.structure.workload().memory(widths) / 1e6

    assert predicted == pytest.approx(peak_memory_mb(student, place.example), rel=0.15)


def test_limited_costs_hold_what_the_budget_asks_for(place, table, tmp_path):
    save_table(table, tmp_path / "table.json")
    budget = Budget(keep_latency=0.9, keep_memory=0.9, round_to=2, min_channels=2)

    costs = limited_costs(place, budget, tmp_path / "table.json", no_progress)

    space = width_space(place.structure.groups, costs, budget)
    assert [limit.resource for limit in space.limits] == ["latency", "memory"]
    assert limited_costs(place, Budget(keep_macs=0.5), None, no_progress) is place.structure.costs


def test_two_networks_are_compared_round_by_round():
    slow = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(12)])

    compared = compare_latency(slow[:2], slow, torch.rand(1, 8, 48, 48), rounds=7)

    assert compared.kept < 0.6
    assert compared.kept_p10 <= compared.kept <= compared.kept_p90
    assert compared.first.rounds == compared.second.rounds == 7
    with pytest.raises(SettingError, match="rounds=0"):
        compare_latency(slow, slow, torch.rand(1, 8, 8, 8), rounds=0)


def test_a_profile_adds_up(place):
    shape = tuple(place.example.shape)
    sweep = Sweep(shapes=[shape], device="cpu", execution=Execution(), rounds=1)
    profile = profile_network(place.teacher, place.example, sweep)

    assert profile.rows[0].macs == sum(layer.macs for layer in profile.layers)
    assert profile.params == sum(layer.params for layer in profile.layers)
    assert profile.layers[0].path == "0"
    assert profile.rows[0].latency.device == "cpu"

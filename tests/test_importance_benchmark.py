"""The benchmark of importance: its draws, its predictions and its table."""

import numpy as np
import torch
from torch import nn

from benchmarks.importance import predictions, random_widths, render
from benchmarks.records import new_record
from coa_compress.structure.analysis import analyze


def row(network, scorer, **more):
    found = {"score": 0.9}
    return {
        "network": network,
        "scorer": scorer,
        "groups": 3,
        "spearman": {"one_shot": dict(found), "readers": dict(found)},
        "mean_loss": {"one_shot": 0.25, "readers": 0.0125},
        **more,
    }


def test_random_widths_are_multiples_of_8_around_the_budgets():
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 32, 3), nn.ReLU(), nn.Conv2d(32, 3, 3)
    )
    structure = analyze(net, torch.zeros(1, 3, 12, 12))
    macs, full = structure.costs.macs, structure.widths

    drawn = random_widths(structure, 30, seed=0)

    assert drawn == random_widths(structure, 30, seed=0)
    assert len({tuple(widths.values()) for widths in drawn}) > 12
    kept = [macs(widths) / macs(full) for widths in drawn]
    assert min(kept) < 0.5 < 0.7 < max(kept) <= 0.9
    for widths in drawn:
        assert all(w % 8 == 0 and 8 <= w <= full[name] for name, w in widths.items())


def test_a_prediction_is_the_sum_of_what_groups_are_expected_to_lose():
    losses = {"a": np.array([9.0, 4.0, 0.0]), "b": np.array([8.0, 2.0, 0.0])}

    assert predictions(losses, [{"a": 2, "b": 2}, {"a": 1, "b": 2}, {"a": 1, "b": 1}]) == [0, 4, 6]


def test_the_table_has_a_part_for_each_network():
    rows = [row("builtin", "fisher"), row("gcanet", "fisher"), row("gcanet", "random")]
    rows[0]["spearman"]["readers"]["curves_refit"] = 0.95
    settings = {"size": 64, "allocations": 40, "calibration": 8, "seed": 0}

    text = render({**new_record("importance", []), "settings": settings, "rows": rows})

    assert text.count("| scorer |") == 2
    assert "**gcanet** (3 groups)" in text
    assert "| fisher | 0.2500 | 0.90 |  | 0.0125 | 0.90 | 0.95 |" in text
    assert "40 allocations, 8 calibration crops of 64 pixels" in text

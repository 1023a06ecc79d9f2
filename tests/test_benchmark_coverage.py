"""The coverage benchmark: its rows, its table, and its exit code."""

import sys

from benchmarks import coverage
from benchmarks.records import read_record


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["coverage", *map(str, arguments)])
    return coverage.main()


def test_two_networks_of_the_zoo_are_exact(monkeypatch, tmp_path, capsys):
    path = tmp_path / "coverage.json"

    assert run(monkeypatch, "--only", "plain", "literal_slice", "--json", path) == 0

    record = read_record(path)
    rows = {row["name"]: row for row in record["rows"]}
    assert {name: row["mode"] for name, row in rows.items()} == {
        "plain": "module",
        "literal_slice": "graph",
    }
    for row in rows.values():
        assert row["macs_kept"] <= 0.5
        assert row["params_kept"] <= 0.5
        assert row["relative_error"] <= 1e-9
        assert row["macs_apart"] == 0
        assert len(row["sizes"]) == 2
        assert set(row["seconds"]) == {"export", "analysis", "cut", "check"}
    assert "2 of 2 exact" in capsys.readouterr().out
    monkeypatch.setattr(coverage, "measure", None)  # what is done is not done again
    assert run(monkeypatch, "--only", "plain", "literal_slice", "--json", path) == 0


def test_a_factory_that_cannot_be_cut_fails(monkeypatch, capsys):
    assert run(monkeypatch, "--model", "torch.nn:Identity", "--size", "4x4") == 1

    assert "Identity: NOT EXACT, no channel group to cut in Identity" in capsys.readouterr().out


def test_a_factory_that_is_not_there_is_named(monkeypatch, capsys):
    assert run(monkeypatch, "--model", "torch.nn:Nothing") == 1

    assert "cannot build --model torch.nn:Nothing" in capsys.readouterr().out

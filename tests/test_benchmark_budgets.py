"""The benchmark of budgets measures each row once and shows what was kept."""

import torch

from benchmarks import budgets
from benchmarks.records import read_record


def test_a_network_is_measured_once_for_each_budget(tmp_path, capsys):
    threads = torch.get_num_threads()
    file = tmp_path / "budgets.json"
    arguments = ["--models", "zoo.residual:build", "--size", "24x24", "--rounds", "3"]
    arguments += ["--keep", "0.7", "--threads", "1", "--round-to", "1", "--json", str(file)]
    try:
        budgets.main(arguments)
        first = read_record(file)
        budgets.main(arguments)
    finally:
        torch.set_num_threads(threads)

    assert read_record(file)["rows"] == first["rows"]
    assert [row["kind"] for row in first["rows"]] == ["latency", "memory", "macs"]
    by_kind = {row["kind"]: row for row in first["rows"]}
    assert by_kind["macs"]["macs_kept"] <= 0.7
    assert by_kind["memory"].get("memory_kept", 0.0) <= 0.7
    assert "70% of macs" in capsys.readouterr().out

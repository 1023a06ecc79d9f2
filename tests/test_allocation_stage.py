"""The allocate stage with measured limits, its files, its plan, and a latency table."""

import pytest
import torch

from coa_compress.cli.commands import run
from coa_compress.compressor import Compressor
from coa_compress.errors import BudgetError, SettingError
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.stages.allocate import AllocateSettings
from tests.nets import Residual
from tests.small_runs import SELF, small_recipe

LATENCY = SELF.replace("keep_macs: 0.6", "keep_latency: 0.95, latency_rounds: 1")
MEMORY = SELF.replace("keep_macs: 0.6", "keep_memory: 0.9, keep_macs: 0.9, evenness: 0.25")


class Plain(torch.nn.Sequential):
    def __init__(self, width=16):
        super().__init__(
            torch.nn.Conv2d(3, width, 3, padding=1),
            Residual(width, width),
            torch.nn.Conv2d(width, 3, 1),
        )


class Wide(Plain):
    """Its time depends on its widths, also where the machine is busy."""

    def __init__(self):
        super().__init__(96)


def test_a_memory_budget_is_met_by_the_built_student(tmp_path):
    teacher = Plain()

    result = Compressor(teacher, recipe=small_recipe(MEMORY), out=tmp_path / "run").run()

    example = torch.zeros(1, 3, 16, 16)
    kept = peak_memory_mb(result.student, example) / peak_memory_mb(teacher.eval(), example)
    assert kept <= 0.9
    allocation = result.report.allocation
    assert allocation["memory_kept"] == pytest.approx(kept)
    assert allocation["macs_kept"] <= 0.9
    assert allocation["allocator"] == "knapsack"
    assert allocation["evenness"] == 0.25
    assert set(allocation["gap_within"]) == {"macs", "memory"}
    assert 0 <= allocation["gap"] <= 1
    assert allocation["measured"]["memory"]["device"] == "cpu"


def test_a_plan_with_a_latency_limit_shows_what_is_predicted(tmp_path, capsys):
    table = tmp_path / "table.json"
    assert run(["profile", f"{__name__}:Wide", "--size", "16x16", "--table", str(table)]) == 0
    assert f"latency table: {table}" in capsys.readouterr().out
    text = LATENCY.replace("0.95, latency_rounds: 1", f"0.95, latency_table: {table}")

    plan = Compressor(Wide(), recipe=small_recipe(text), out=tmp_path / "run").plan()

    line = next(line for line in plan.splitlines() if line.startswith("latency"))
    assert line.endswith("% predicted; a run builds the student and measures it")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({}, BudgetError, "no budget given: set keep_macs or keep_params .* or limit latency"),
        ({"keep_latency": 1.5}, SettingError, r"keep_latency must be at most 1\.0, got 1\.5"),
        ({"max_memory_mb": 0.0}, SettingError, r"max_memory_mb must be above 0\.0, got 0\.0"),
    ],
)
def test_wrong_limits_are_named(given, error, words):
    with pytest.raises(error, match=words):
        AllocateSettings(**given)

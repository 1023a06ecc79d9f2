"""The allocate stage with measured limits, its files, its plan, and a latency table."""

from dataclasses import dataclass, replace

import pytest
import torch

from coa_compress.artifacts import Batch
from coa_compress.cli.commands import run
from coa_compress.compressor import Compressor
from coa_compress.errors import BudgetError, SettingError
from coa_compress.profiling.memory import peak_memory_mb
from coa_compress.protocols import SilentObserver
from coa_compress.stages import allocate as allocating
from coa_compress.stages.allocate import Allocate, AllocateSettings
from coa_compress.stages.state import Context, State
from coa_compress.structure.analysis import analyze
from tests.nets import Residual
from tests.small_runs import SELF, seeded, small_recipe

LATENCY = SELF.replace("keep_macs: 0.6", "keep_latency: 0.95, latency_rounds: 1")
MEMORY = SELF.replace("keep_macs: 0.6", "keep_memory: 0.9, keep_macs: 0.9")


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


class Uneven(torch.nn.Sequential):
    """Two groups, of which the first matters less than the second."""

    def __init__(self):
        convs = [torch.nn.Conv2d(3, 16, 1), torch.nn.Conv2d(16, 16, 1), torch.nn.Conv2d(16, 3, 1)]
        super().__init__(*convs)


@dataclass
class Images:
    """A task with nothing but images to calibrate on."""

    batches: list[Batch]

    def calibration_batches(self):
        return self.batches


@pytest.fixture(scope="module")
def uneven():
    """A teacher with its scores, and what stages are given."""
    teacher = seeded(Uneven).eval()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    structure = analyze(teacher, images[:1])
    first, second = (group.name for group in structure.groups)
    scores = {first: torch.linspace(1, 2, 16) * 0.2, second: torch.linspace(1, 2, 16)}
    context = Context(
        task=Images([Batch(images)]),
        seed=0,
        device="cpu",
        observer=SilentObserver(),
        structure=lambda _: structure,
        example=images[:1],
    )
    return State(teacher=teacher, scores=scores), context


def allocated(uneven, **given):
    settings = AllocateSettings(keep_params=0.6, round_to=2, min_channels=2, **given)
    return Allocate(settings).run(*uneven).allocation


@pytest.mark.parametrize(("tolerance_db", "evenness"), [(1e9, 0.5), (-1e9, 0.0)])
def test_widths_are_evened_unless_that_takes_the_refitted_student_too_far(
    uneven, monkeypatch, tolerance_db, evenness
):
    monkeypatch.setattr(allocating, "_TOLERANCE_DB", tolerance_db)
    tried = allocated(uneven)
    monkeypatch.setattr(allocating, "refit", None)  # a number needs none
    given = {number: allocated(uneven, evenness=number) for number in (0.0, 0.5)}

    assert tried.evenness == evenness
    assert tried.widths == given[evenness].widths != given[0.5 - evenness].widths
    assert tried.macs == given[evenness].macs


def test_a_later_round_keeps_the_evenness_of_the_first(uneven, monkeypatch):
    state, context = uneven
    monkeypatch.setattr(allocating, "refit", None)
    before = allocated(uneven, evenness=0.3)
    scores = {name: scores[before.kept[name]] for name, scores in state.scores.items()}
    state = replace(state, scores=scores, allocation=before)

    settings = AllocateSettings(keep_params=0.4, round_to=2, min_channels=2)
    later = Allocate(settings)

    assert later._evenness(state, context, choose=None) == 0.3


def test_where_predictions_see_no_way_students_are_still_built_and_measured(uneven):
    state, context = uneven

    def choose(evenness):
        raise BudgetError(str(evenness))

    settings = AllocateSettings(keep_latency=0.5)
    assert Allocate(settings)._evenness(state, context, choose) == 0.5

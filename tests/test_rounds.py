"""Facts about allocation in several rounds of cut, refit and new scores."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import Plain, seeded, small_recipe
from torch import nn

import coa_compress
from coa_compress.allocation.allocate import make_allocation
from coa_compress.artifacts import Budget
from coa_compress.compressor import Compressor
from coa_compress.errors import BudgetError, RecipeError, SettingError
from coa_compress.rounds import RoundSteps, allocate_in_rounds, groups_after
from coa_compress.scoring.catalog import SCORERS
from coa_compress.structure.analysis import analyze


class Net(nn.Module):
    """A residual block, a concatenation and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.one = nn.Conv2d(12, 16, 1)
        self.two = nn.Conv2d(16, 12, 3, padding=1)
        self.side = nn.Conv2d(12, 8, 1)
        self.head = nn.Conv2d(20, 3, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.two(torch.relu(self.one(x)))
        return self.head(torch.cat([x, torch.sigmoid(self.side(x))], dim=1))


@pytest.fixture(scope="module")
def structure():
    torch.manual_seed(0)
    return analyze(Net().eval(), torch.rand(1, 3, 8, 8))


def magnitude(model, groups):
    return SCORERS.get("magnitude")(model, groups, [], lambda output, batch: output.mean())


def steps_of(structure, *, seen=None):
    def score(model, groups):
        if seen is not None:
            seen.append((model, groups))
        return magnitude(model, groups)

    return RoundSteps(
        score=score,
        allocate=lambda groups, scores, budget: make_allocation(
            groups, scores, structure.costs, budget, "greedy"
        ),
        refit=lambda cut: cut.student,
    )


@settings(deadline=None, max_examples=15)
@given(
    keep=st.floats(0.2, 1.0),
    rounds=st.integers(1, 4),
    round_to=st.sampled_from([1, 2, 4]),
    resource=st.sampled_from(["keep_macs", "keep_params"]),
)
def test_the_budget_of_the_teacher_is_met_in_any_number_of_rounds(
    structure, keep, rounds, round_to, resource
):
    budget = Budget(**{resource: keep}, round_to=round_to, min_channels=2)
    scores = magnitude(structure.model, structure.groups)

    found = allocate_in_rounds(structure, scores, budget, steps_of(structure), rounds=rounds)

    assert found.teacher_widths == structure.widths
    assert found.teacher_macs == structure.costs.macs(structure.widths)
    assert (found.macs, found.params) == (
        structure.costs.macs(found.widths),
        structure.costs.params(found.widths),
    )
    cost = {"keep_macs": structure.costs.macs, "keep_params": structure.costs.params}[resource]
    assert cost(found.widths) <= keep * cost(structure.widths)
    student = structure.cut(found.kept).student
    assert sum(p.numel() for p in student.parameters()) == found.params
    for kept in found.kept.values():
        assert torch.equal(kept, kept.unique())


def test_one_round_is_the_allocation_alone(structure):
    scores = magnitude(structure.model, structure.groups)
    budget = Budget(keep_macs=0.5, round_to=1, min_channels=1)
    steps = steps_of(structure)

    found = allocate_in_rounds(structure, scores, budget, steps, rounds=1)

    alone = steps.allocate(structure.groups, scores, budget)
    assert all(torch.equal(found.kept[name], kept) for name, kept in alone.kept.items())
    assert (found.macs, found.teacher_macs) == (alone.macs, alone.teacher_macs)


def test_each_round_scores_a_smaller_network_as_if_it_were_the_teacher(structure):
    seen = []
    budget = Budget(keep_macs=0.25, round_to=1, min_channels=1)
    scores = magnitude(structure.model, structure.groups)

    allocate_in_rounds(structure, scores, budget, steps_of(structure, seen=seen), rounds=3)

    full = structure.costs.macs(structure.widths)
    sizes = [structure.costs.macs({g.name: g.n_channels for g in groups}) for _, groups in seen]
    assert [round(size / full, 1) for size in sizes] == [round(0.25 ** (n / 3), 1) for n in (1, 2)]
    for model, groups in seen:
        tensors = model.state_dict()
        for member in (m for g in groups for m in g.members):
            assert int(member.positions.max()) < tensors[member.tensor].shape[member.dim]


def test_the_groups_of_a_student_are_those_that_its_own_analysis_finds(structure):
    kept = {n: torch.arange(0, width, 2) for n, width in structure.widths.items()}
    cut = structure.cut(kept)

    after = {g.name: g for g in groups_after(structure.groups, kept, cut)}

    own = {g.name: g for g in analyze(cut.student, torch.rand(1, 3, 8, 8)).groups}
    assert after.keys() == own.keys()
    for name, group in own.items():
        assert after[name].n_channels == group.n_channels
        found = {(m.tensor, m.dim): m.positions.tolist() for m in after[name].members}
        assert found == {(m.tensor, m.dim): m.positions.tolist() for m in group.members}


def test_a_group_that_is_not_named_stays_whole(structure):
    group = structure.groups[0]
    cut = structure.cut({})

    assert groups_after([group], {}, cut)[0].n_channels == group.n_channels


def test_bad_rounds_and_budgets_are_errors(structure):
    scores = magnitude(structure.model, structure.groups)
    budget = Budget(keep_macs=0.5, round_to=1, min_channels=1)
    with pytest.raises(SettingError, match="rounds must be at least 1, got 0"):
        allocate_in_rounds(structure, scores, budget, steps_of(structure), rounds=0)
    tight = replace(budget, keep_macs=0.0001)
    with pytest.raises(BudgetError, match="cannot keep"):
        allocate_in_rounds(structure, scores, tight, steps_of(structure), rounds=1)


def test_a_run_in_two_rounds_saves_opens_and_resumes_as_any_other(tmp_path):
    teacher = seeded(lambda: Plain(16)).eval()
    recipe = small_recipe(stages__allocate__rounds=2, stages__score__scorer="magnitude")

    result = Compressor(teacher, recipe=recipe, out=tmp_path / "run").run()
    again = Compressor(teacher, recipe=recipe, out=tmp_path / "run").run()

    image = torch.rand(1, 3, 16, 16)
    opened = coa_compress.load(tmp_path / "run" / "student", model=teacher)
    assert torch.equal(opened(image), result.student(image))
    assert torch.equal(again.student(image), result.student(image))
    macs = result.report.measurements
    assert macs["student"]["macs"] <= 0.6 * macs["teacher"]["macs"]


def test_a_stage_that_is_changed_after_the_scores_were_read_back_goes_on_with_them(tmp_path):
    teacher = seeded(lambda: Plain(16)).eval()
    for rounds in (1, 2):
        recipe = small_recipe(stages__allocate__rounds=rounds)
        result = Compressor(teacher, recipe=recipe, out=tmp_path / "run").run()

    assert result.report.stage_seconds["allocate"] > 0


def test_rounds_in_a_recipe_have_a_range():
    with pytest.raises(RecipeError, match="rounds"):
        small_recipe(stages__allocate__rounds=0)

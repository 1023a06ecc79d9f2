"""Torch-Pruning as a structure, and our scores in its pruners; skipped where it is absent."""

import configparser
import copy
import re
import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import nn

from coa_compress.adapters import torch_pruning as adapter
from coa_compress.adapters.torch_pruning_importance import ScoreImportance
from coa_compress.allocation.allocate import make_allocation
from coa_compress.artifacts import Budget
from coa_compress.errors import NoEffectWarning, StructureError
from coa_compress.profiling.counting import count_macs, count_params
from coa_compress.structure.analysis import analyze

tp = pytest.importorskip("torch_pruning")
EXAMPLE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.outer = nn.Conv2d(12, 8, 1)
        self.up = nn.ConvTranspose2d(16, 6, 2, stride=2)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        stem = torch.relu(self.norm(self.stem(x)))
        wide = stem + self.outer(torch.relu(self.depthwise(self.inner(stem))))
        return self.head(torch.relu(self.up(torch.cat([stem, wide], dim=1))))


def network():
    torch.manual_seed(0)
    net = Residual().eval()
    net.norm.running_mean.uniform_(-1, 1)
    return net


@pytest.fixture(scope="module")
def structure():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)
        return adapter.analyze(network(), EXAMPLE)


def test_the_output_is_left_whole_with_a_warning_and_the_rest_is_found():
    with pytest.warns(NoEffectWarning, match="left whole, as torch-pruning cannot cut them: head"):
        found = adapter.analyze(network(), EXAMPLE)
    assert found.widths == {"stem": 8, "inner": 12, "up": 6}


def test_the_groups_are_those_of_our_own_analysis(structure):
    own = {group.n_channels: group for group in analyze(network(), EXAMPLE).groups}
    for group in structure.groups:
        ours = {(m.tensor, m.dim): m.positions.tolist() for m in own[group.n_channels].members}
        assert {(m.tensor, m.dim): m.positions.tolist() for m in group.members} == ours


def test_costs_are_those_of_the_cut_network_and_the_teacher_is_unchanged(structure):
    before = copy.deepcopy(structure.model.state_dict())
    kept = {"stem": torch.tensor([0, 2, 5]), "inner": torch.arange(7), "up": torch.tensor([1, 4])}
    cut = structure.cut(kept)
    widths = {name: len(channels) for name, channels in kept.items()}
    assert count_macs(cut.student, EXAMPLE) == structure.costs.macs(widths)
    assert count_params(cut.student) == structure.costs.params(widths)
    assert all(torch.equal(before[n], t) for n, t in structure.model.state_dict().items())
    assert {(p.module, p.attribute): p.value for p in cut.patches}["up", "in_channels"] == 6


def test_a_cut_equals_our_own_of_the_same_channels(structure):
    kept = {"stem": torch.tensor([0, 2, 5]), "inner": torch.arange(7)}
    ours = analyze(network(), EXAMPLE).cut(kept).student
    torch.testing.assert_close(structure.cut(kept).student(EXAMPLE), ours(EXAMPLE))


def test_slices_tell_which_weights_were_kept(structure):
    cut = structure.cut({"stem": torch.tensor([0, 2, 5])})
    weights, teacher = cut.student.state_dict(), structure.model.state_dict()
    for name, dims in cut.slices.items():
        expected = teacher[name]
        for dim, positions in dims.items():
            expected = expected.index_select(dim, positions)
        assert torch.equal(weights[name], expected)
    assert cut.slices["up.weight"][0].tolist() == [0, 2, 5, 8, 10, 13]


def test_an_allocation_within_a_budget_is_cut(structure):
    scores = {g.name: torch.arange(g.n_channels, dtype=torch.float64) for g in structure.groups}
    budget = Budget(keep_macs=0.5, round_to=1, min_channels=1)
    allocation = make_allocation(structure.groups, scores, structure.costs, budget)
    student = structure.cut(allocation.kept).student
    assert count_macs(student, EXAMPLE) == allocation.macs <= allocation.teacher_macs / 2


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"stm": torch.arange(2)}, "no channel group 'stm': known: stem, inner, up"),
        ({"up": torch.arange(0)}, "group 'up' must keep some of its channels 0 to 5, each once"),
        ({"up": torch.tensor([1, 1])}, "group 'up' must keep some of its channels 0 to 5"),
        ({"up": torch.tensor([6])}, "group 'up' must keep some of its channels 0 to 5"),
    ],
)
def test_channels_that_do_not_exist_are_an_error(structure, kept, message):
    with pytest.raises(StructureError, match=re.escape(message)):
        structure.cut(kept)


def test_it_is_declared_as_an_entry_point():
    declared = configparser.ConfigParser()
    declared.read(Path(__file__).parent.parent / "setup.cfg", encoding="utf-8")
    name, _, value = declared["options.entry_points"]["coa_compress.structures"].partition("=")
    point = EntryPoint(name.strip(), value.strip(), "coa_compress.structures")
    assert point.name == "torch_pruning"
    assert point.load() is adapter.analyze


def test_without_the_library_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(StructureError, match=re.escape("pip install torch-pruning==1.6.1")):
        adapter.analyze(network(), EXAMPLE)


def test_a_network_without_groups_is_an_error():
    single = nn.Sequential(nn.Conv2d(3, 3, 1))
    with (
        pytest.warns(NoEffectWarning),
        pytest.raises(StructureError, match="torch-pruning finds no channel group to cut"),
    ):
        adapter.analyze(single, EXAMPLE)


def test_its_pruner_removes_what_our_scores_say():
    net = network()
    groups = analyze(net, EXAMPLE).groups
    scores = {g.name: torch.arange(g.n_channels, dtype=torch.float64) for g in groups}
    before = copy.deepcopy(net)
    pruner = tp.pruner.BasePruner(
        net,
        EXAMPLE,
        importance=ScoreImportance(net, groups, scores),
        pruning_ratio=0.5,
        ignored_layers=[net.head],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )
    pruner.step()
    assert torch.equal(net.stem.weight, before.stem.weight[4:])
    assert torch.equal(net.depthwise.weight, before.depthwise.weight[6:])


def test_scores_of_another_network_are_an_error():
    net = network()
    importance = ScoreImportance(net, [], {})
    assert importance.of_module("stem", [0]) is None
    groups = analyze(net, EXAMPLE).groups
    scores = {g.name: torch.ones(g.n_channels) for g in groups}
    with pytest.raises(StructureError, match="'stem' has no channel 9: score the network"):
        ScoreImportance(net, groups, scores).of_module("stem", [9])

"""The same group and the same channels, cut by Torch-Pruning: the same network."""

import copy
import importlib

import pytest
import torch
from nets import randomize_

from coa_compress.structure.analysis import analyze


@pytest.mark.parametrize("name", ["plain", "residual", "concat", "transposed"])
def test_torch_pruning_makes_the_same_network(name):
    peer = pytest.importorskip("torch_pruning")
    module = importlib.import_module(f"zoo.{name}")
    torch.manual_seed(0)
    example = module.example()
    teacher = randomize_(module.build()).eval()
    structure = analyze(teacher, example)
    layers = dict(teacher.named_modules())
    checked = 0
    for group in structure.groups:
        first = group.members[0]
        layer = layers[first.tensor.rpartition(".")[0]]
        if first.role != "output" or first.positions.shape[1] != 1 or not hasattr(layer, "weight"):
            continue
        kept = torch.arange(0, group.n_channels, 2)
        gone = torch.ones(group.n_channels, dtype=torch.bool)
        gone[kept] = False
        other = copy.deepcopy(teacher)
        graph = peer.DependencyGraph().build_dependency(other, example_inputs=example)
        path = first.tensor.rpartition(".")[0]
        target = dict(other.named_modules())[path]
        prune = graph.get_pruner_of_module(target).prune_out_channels
        graph.get_pruning_group(target, prune, first.positions[gone].flatten().tolist()).prune()

        student = structure.cut({group.name: kept}).student

        with torch.no_grad():
            torch.testing.assert_close(student(example), other(example))
        assert {n: p.shape for n, p in student.named_parameters()} == {
            n: p.shape for n, p in other.named_parameters()
        }
        checked += 1
    assert checked > 0

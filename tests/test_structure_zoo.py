"""Laws of the cut, on every network of the zoo."""

import copy
import functools
import importlib
from dataclasses import replace

import pytest
import torch
import zoo
from nets import random_channels, randomize_
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from coa_compress.rounds import cut_after, widened
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exactness import check_exact, exactness_error
from coa_compress.structure.exported import ExportedStructure
from coa_compress.structure.graph import canonical_names
from coa_compress.structure.graph_student import GraphsBySize, GraphStudent
from coa_compress.structure.rebuild import apply_shapes_, named_tensors

NAMES = tuple(zoo.names())
GRAPH = {
    "attention_views",
    "literal_slice",
    "multihead_attention",
    "unscaled_attention",
}
"""Networks whose code fixes sizes: their students run the graph."""


@functools.cache
def analyzed(name: str) -> tuple[ExportedStructure, Tensor]:
    module = importlib.import_module(f"zoo.{name}")
    torch.manual_seed(0)
    example = module.example()
    return analyze(randomize_(module.build()).eval(), example), example


def halves(structure: ExportedStructure) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randperm(width, generator=generator)[: (width + 1) // 2]
        for name, width in structure.widths.items()
    }


def n_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


VECTORS = {
    torch.ops.aten.mv: lambda matrix, _vector, **_: 2 * matrix[0] * matrix[1],
    torch.ops.aten.dot: lambda vector, _other, **_: 2 * vector[0],
    torch.ops.aten.vdot: lambda vector, _other, **_: 2 * vector[0],
}
"""Products that the counter of torch leaves out, by the shapes of what they multiply."""


def n_macs(model: nn.Module, example: Tensor) -> int:
    # with gradients and by plain products, attention runs no kernel that the counter cannot read
    counter = FlopCounterMode(display=False, custom_mapping=VECTORS)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(example)
    return counter.get_total_flops() // 2


def outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(model(example))


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_to_halves_is_exact(name):
    structure, example = analyzed(name)
    kept = halves(structure)

    exact = check_exact(structure, structure.cut(kept), kept, example)

    assert len(exact.sizes) == 2


@pytest.mark.parametrize("name", NAMES)
def test_students_are_of_the_own_class_unless_code_fixes_sizes(name):
    structure, _ = analyzed(name)

    assert structure.mode == ("graph" if name in GRAPH else "module")
    assert structure.frozen == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [2, 3])
def test_a_cut_to_any_widths_is_exact(name, seed):
    structure, example = analyzed(name)
    kept = random_channels(structure.widths, seed)

    assert exactness_error(structure, structure.cut(kept), kept, example) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_another_choice_of_channels_is_another_network(name):
    structure, example = analyzed(name)
    kept = halves(structure)
    others = {
        group: torch.tensor([c for c in range(structure.widths[group]) if c not in channels])
        for group, channels in kept.items()
    }
    others = {
        group: torch.cat([channels, kept[group]])[: len(kept[group])]
        for group, channels in others.items()
    }

    assert exactness_error(structure, structure.cut(kept), others, example) > 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_those_of_the_student(name):
    structure, example = analyzed(name)
    kept = random_channels(structure.widths, 4, least=2)
    widths = {group: len(channels) for group, channels in kept.items()}
    student = structure.cut(kept).student

    assert structure.costs.params(structure.widths) == n_params(structure.model)
    assert structure.costs.params(widths) == n_params(student)
    assert structure.costs.macs(structure.widths) == n_macs(structure.model, example)
    assert structure.costs.macs(widths) == n_macs(student, example)


@pytest.mark.parametrize("name", NAMES)
def test_keeping_everything_changes_nothing(name):
    structure, example = analyzed(name)
    kept = {group: torch.arange(width) for group, width in structure.widths.items()}

    cut = structure.cut(kept)

    assert not cut.slices
    assert not cut.patches
    both = zip(outputs(cut.student, example), outputs(structure.model, example), strict=True)
    if structure.mode == "module":
        assert all(torch.equal(a, b) for a, b in both)
    else:
        # torch's attention module runs other kernels than its own graph
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in both)


@pytest.mark.parametrize("name", NAMES)
def test_the_teacher_is_unchanged(name):
    structure, _ = analyzed(name)
    module = importlib.import_module(f"zoo.{name}")
    model = randomize_(module.build()).train()
    before = copy.deepcopy(model)
    widths = structure.with_model(model).widths

    structure.with_model(model).cut(random_channels(widths, 5))

    assert model.training
    for key, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)
    for mine, theirs in zip(model.modules(), before.modules(), strict=True):
        assert mine.training == theirs.training
        assert set(vars(mine)) == set(vars(theirs))
        assert len(mine._forward_hooks) == len(theirs._forward_hooks)
        assert len(mine._forward_pre_hooks) == len(theirs._forward_pre_hooks)


@pytest.mark.parametrize("name", NAMES)
def test_a_student_that_has_learned_is_cut_again(name):
    structure, example = analyzed(name)
    kept = random_channels(structure.widths, 1)
    once = structure.cut(kept)
    once = replace(once, student=randomize_(copy.deepcopy(once.student), 2))
    fewer = {group: channels[: max(1, len(channels) // 2)] for group, channels in kept.items()}

    wide = structure.with_model(widened(structure.model, once))
    twice = wide.cut(fewer)

    check_exact(wide, twice, fewer, example)
    same = outputs(wide.cut(kept).student, example)
    assert all(map(torch.equal, same, outputs(once.student, example)))
    before, after = named_tensors(once.student), named_tensors(twice.student)
    relative = cut_after(once, twice).slices
    for tensor in dict.fromkeys(canonical_names(once.student).values()):
        left = before[tensor]
        for dim, positions in relative.get(tensor, {}).items():
            left = left.index_select(dim, positions)
        assert torch.equal(left, after[tensor])


@pytest.mark.parametrize("name", NAMES)
def test_a_student_is_rebuilt_from_a_fresh_teacher(name):
    structure, example = analyzed(name)
    cut = structure.cut(random_channels(structure.widths, 6))
    saved = cut.student.state_dict()
    fresh = importlib.import_module(f"zoo.{name}").build().eval()

    graphs = GraphsBySize(fresh)
    apply_shapes_(fresh, cut.patches, {key: saved[key].shape for key in cut.slices})
    if structure.mode == "graph":
        fresh = GraphStudent(fresh, graphs, cut.slices)
    fresh.load_state_dict(saved)

    assert all(
        torch.equal(a, b)
        for a, b in zip(outputs(fresh, example), outputs(cut.student, example), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_operator_has_a_rule(name):
    structure, _ = analyzed(name)

    assert structure.unknown_ops == ()


@pytest.mark.parametrize("name", NAMES)
def test_members_say_where_the_channels_are(name):
    structure, _ = analyzed(name)
    tensors = dict(structure.model.named_parameters()) | dict(structure.model.named_buffers())
    names = [group.name for group in structure.groups]

    assert len(set(names)) == len(names)
    for group in structure.groups:
        for member in group.members:
            positions = member.positions
            assert positions.shape[0] == group.n_channels
            assert positions.dtype == torch.int64
            assert positions.unique().numel() == positions.numel()
            assert int(positions.max()) < tensors[member.tensor].shape[member.dim]

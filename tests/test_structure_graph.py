"""Students that run the teacher's graph: exact, plain, and at any size."""

import copy
import json

import pytest
import torch
from nets import random_channels, randomize_
from small_runs import small_recipe
from torch import Tensor, nn
from zoo import literal_slice, multihead_attention

from coa_compress import Compressor, load
from coa_compress.artifacts import Batch
from coa_compress.errors import StructureError, WeightsError
from coa_compress.profiling.counting import count_macs
from coa_compress.refit.closed_form import refit
from coa_compress.structure import graph_student
from coa_compress.structure.analysis import analyze
from coa_compress.structure.exactness import check_exact, exactness_error
from coa_compress.structure.graph import export_graph
from coa_compress.structure.graph_student import GraphsBySize, GraphStudent
from coa_compress.structure.modes import least
from coa_compress.structure.reference import double_precision
from coa_compress.students import (
    STUDENT_RECORD,
    StudentRecord,
    graph_record,
    load_student,
    save_student,
)


class Literal(literal_slice.Network):
    """The zoo's network at an address that can be imported."""


class Features(nn.Module):
    """An image and the features that it is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 10, 3, padding=1)
        self.side = nn.Conv2d(10, 6, 1)
        self.head = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = torch.sigmoid(self.stem(x))
        y = torch.sigmoid(self.body(x))
        return self.head(y), [x, self.side(y)]


def image(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def literal():
    example = image(1, 3, 16, 16)
    structure = analyze(randomize_(Literal()).eval(), example)
    kept = {name: torch.arange(0, width, 2) for name, width in structure.widths.items()}
    return structure, kept, structure.cut(kept), example


def same(first: nn.Module, second: nn.Module, example: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(first(example), second(example))


def test_code_with_literals_is_cut_as_a_graph_and_exact(literal):
    structure, kept, cut, example = literal

    assert structure.mode == "graph"
    assert structure.widths == {"first": 8, "second": 8, "stem": 5, "stem#2": 9}
    assert isinstance(cut.student, GraphStudent)
    assert "graph of Literal" in repr(cut.student)
    assert check_exact(structure, cut, kept, example).sizes == ((1, 3, 16, 16), (1, 3, 8, 8))


def test_a_size_first_met_in_mixed_precision_is_exported_in_full(literal, monkeypatch):
    structure, kept, cut, _ = literal
    x = image(2, 3, 24, 8)
    fresh = structure.cut(kept).student
    fresh._programs.graphs = GraphsBySize(structure.model)
    mixed = []

    def export(network, example):
        mixed.append(torch.is_autocast_enabled("cpu"))
        return export_graph(network, example)

    monkeypatch.setattr(graph_student, "export_graph", export)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rough = fresh(x)

    assert mixed == [False]
    assert same(fresh, cut.student, x)
    with torch.no_grad():
        torch.testing.assert_close(rough.float(), fresh(x), rtol=0.1, atol=0.1)


def test_a_graph_can_get_smaller_than_the_code_allows(literal):
    structure, _, _, example = literal
    by_code = analyze(structure.model, example, mode="module")

    assert least(structure) < 0.5 * least(by_code)


def test_tensors_keep_their_names_and_layers_stay_layers(literal):
    structure, _, cut, _ = literal

    assert list(cut.student.state_dict()) == list(structure.model.state_dict())
    assert type(cut.student.first) is nn.Conv2d
    assert cut.student.first.weight.shape == (4, 3, 3, 3)
    assert cut.student.gate.out_features == 8


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (3, 3, 8, 24), (2, 3, 15, 9)])
def test_any_size_and_batch_is_what_the_kept_channels_compute(literal, shape):
    structure, kept, cut, _ = literal
    teacher = copy.deepcopy(structure.model)
    with torch.no_grad():
        # nothing here is restricted: zeroed channels are removed channels
        for group in structure.groups:
            gone = torch.ones(group.n_channels, dtype=torch.bool)
            gone[kept[group.name]] = False
            for member in group.members:
                tensor = teacher.get_parameter(member.tensor)
                tensor.index_fill_(member.dim, member.positions[gone].flatten(), 0.0)

        torch.testing.assert_close(cut.student(image(*shape)), teacher(image(*shape)))


def test_a_graph_follows_the_type_of_its_weights_and_whoever_counts_it(literal):
    _, _, cut, example = literal
    double = copy.deepcopy(cut.student).double()

    with torch.inference_mode():
        assert double(image(1, 3, 12, 12).double()).dtype == torch.float64
    with double_precision():
        assert double(image(1, 3, 20, 20).double()).dtype == torch.float64
    assert count_macs(cut.student, image(1, 3, 10, 10)) == pytest.approx(
        count_macs(cut.student, example) * 100 / 256, rel=0.01
    )


def test_a_copy_has_its_own_weights(literal):
    _, _, cut, example = literal
    twin = copy.deepcopy(cut.student)
    assert same(twin, cut.student, example)

    with torch.no_grad():
        twin.first.weight.add_(1.0)

    assert not same(twin, cut.student, example)


def test_gradients_reach_every_parameter():
    example = image(2, 3, 16, 16)
    structure = analyze(randomize_(multihead_attention.build()), example[:1])
    student = structure.cut(random_channels(structure.widths, 1)).student.train()

    student(example).square().mean().backward()

    assert structure.mode == "graph"
    assert all(p.grad is not None and bool(p.grad.any()) for p in student.parameters())


def test_a_graph_student_is_refitted(literal):
    structure, _, cut, _ = literal
    batches = [Batch(image(4, 3, 16, 16))]

    result = refit(structure.model, cut, batches)

    assert {layer.path for layer in result.layers} >= {"first", "second", "head"}
    before, after = (
        (net(batches[0].input) - structure.model(batches[0].input)).square().mean()
        for net in (cut.student, result.student)
    )
    assert after < 0.7 * before


def test_a_saved_graph_student_opens_without_pickle(literal, tmp_path):
    structure, kept, cut, example = literal
    tensors, teacher = cut.student.state_dict(), structure.model.state_dict()
    record = StudentRecord(
        factory=f"{__name__}:Literal",
        kept={name: channels.tolist() for name, channels in kept.items()},
        patches=cut.patches,
        shapes={n: list(t.shape) for n, t in tensors.items() if t.shape != teacher[n].shape},
        graph=graph_record(cut.student),
    )
    save_student(tmp_path, cut.student, record=record)

    assert same(load_student(tmp_path), cut.student, example)
    assert same(load_student(tmp_path, model=Literal()), cut.student, example)

    document = json.loads((tmp_path / STUDENT_RECORD).read_text())
    document["graph"]["slices"]["first.weight"]["0"] = [99]
    (tmp_path / STUDENT_RECORD).write_text(json.dumps(document))
    with pytest.raises(WeightsError, match=r"no such positions .* dimension 0 of 'first.weight'"):
        load_student(tmp_path, model=Literal())

    document["graph"] = {"slices": {"first.weight": 3}}
    (tmp_path / STUDENT_RECORD).write_text(json.dumps(document))
    with pytest.raises(WeightsError, match="graph of the student's record is damaged"):
        load_student(tmp_path, model=Literal())


def test_a_run_in_graph_mode_says_so_and_goes_on_where_it_stopped(tmp_path):
    model, recipe = randomize_(Literal()), small_recipe()
    first = Compressor(model, recipe=recipe, out=tmp_path / "run").run()

    again = Compressor(model, recipe=recipe, out=tmp_path / "run").run()

    notes = " ".join(again.report.notes)
    assert "graph mode: the code of the network fixes sizes" in notes
    assert "the cut is exact: relative error" in notes
    assert same(again.student, first.student, image(1, 3, 16, 16))
    assert same(load(tmp_path / "run" / "student"), first.student, image(1, 3, 16, 16))


def test_module_and_graph_mode_can_be_asked_for():
    example = image(1, 3, 16, 16)
    net = randomize_(Features()).eval()

    for mode in ("module", "graph"):
        structure = analyze(net, example, mode=mode)
        kept = random_channels(structure.widths, 2)
        assert structure.mode == mode
        assert structure.widths == {"body": 10}
        assert exactness_error(structure, structure.cut(kept), kept, example) < 1e-9


def test_outputs_that_need_not_stay_are_cut_too():
    example = image(1, 3, 16, 16)
    structure = analyze(randomize_(Features()).eval(), example, outputs=[0])
    kept = {"stem": torch.tensor([1, 4]), "body": torch.tensor([0]), "side": torch.tensor([2, 5])}

    cut = structure.cut(kept)

    assert structure.widths == {"stem": 8, "body": 10, "side": 6}
    assert [y.shape[1] for y in (cut.student(example)[0], *cut.student(example)[1])] == [3, 2, 2]
    assert check_exact(structure, cut, kept, example).error < 1e-9


def test_an_output_that_is_not_there_is_an_error():
    with pytest.raises(StructureError, match="no output 3: the network returns 3 tensors"):
        analyze(Features(), image(1, 3, 8, 8), outputs=[0, 3])


def test_an_unknown_mode_is_an_error():
    with pytest.raises(StructureError, match="mode must be auto, module, graph, got 'fast'"):
        analyze(Features(), image(1, 3, 8, 8), mode="fast")


def test_attention_takes_batches_of_any_size_whatever_merges_batch_and_heads():
    model = randomize_(multihead_attention.build()).eval()
    structure = analyze(model, image(1, 3, 16, 16))
    kept = random_channels(structure.widths, seed=3)
    student = structure.cut(kept).student
    images = image(16, 3, 16, 16)

    together = student(images)

    alone = torch.cat([student(images[i : i + 1]) for i in range(16)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)

"""Networks written as ONNX files: equal to torch, and clear about what cannot be written."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from nets import randomize_
from small_runs import Plain, seeded
from torch import nn
from zoo import literal_slice

from coa_compress import exporting
from coa_compress.cli.export import name_of, sentence
from coa_compress.errors import CoaWarning, ModelError
from coa_compress.exporting import Exported, export_onnx
from coa_compress.structure.analysis import analyze

with_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="extra onnx"
)


class FixedSize(nn.Module):
    """Code that only works at 16 x 16."""

    def forward(self, image):
        return image.reshape(image.shape[0], 3, 256).reshape(image.shape[0], 3, 16, 16)


class Looping(nn.Module):
    """Code that is unrolled over the rows of its input."""

    def forward(self, image):
        for _ in range(image.shape[2] // 8):
            image = image * 2
        return image


class Noisy(nn.Module):
    """Another output every time."""

    def forward(self, image):
        return image + torch.rand_like(image)


class Deciding(nn.Module):
    """Code that depends on what is in the image."""

    def forward(self, image):
        return image * 2 if image.sum() > 0 else image


def example():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def run_onnx(path, image):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (returned,) = session.run(None, {"input": image.numpy()})
    return torch.from_numpy(returned)


@with_onnx
def test_a_file_returns_what_torch_does_and_the_network_is_unchanged(tmp_path):
    net = seeded(Plain).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    written = export_onnx(net, example(), tmp_path / "new" / "net.onnx")

    assert written.difference < 1e-5
    assert written.file_bytes == written.path.stat().st_size
    assert [path.name for path in written.path.parent.iterdir()] == ["net.onnx"]
    torch.testing.assert_close(run_onnx(written.path, example()), net(example()).detach())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@with_onnx
def test_a_dynamic_file_takes_any_batch_and_size(tmp_path):
    net = seeded(Plain).eval()
    written = export_onnx(net, example(), tmp_path / "net.onnx", dynamic=True)

    image = torch.rand(5, 3, 24, 40)
    torch.testing.assert_close(run_onnx(written.path, image), net(image).detach())
    assert written.sizes == ((1, 3, 16, 16), (3, 3, 48, 48))


@with_onnx
def test_a_student_in_graph_mode_is_exported_at_its_size(tmp_path):
    structure = analyze(randomize_(literal_slice.Network()).eval(), example())
    kept = {name: torch.arange(0, width, 2) for name, width in structure.widths.items()}
    student = structure.cut(kept).student

    written = export_onnx(student, example(), tmp_path / "net.onnx")

    assert written.difference < 1e-5
    with pytest.raises(ModelError, match="graph mode holds one graph for each size: leave --dyn"):
        export_onnx(student, example(), tmp_path / "any.onnx", dynamic=True)


@with_onnx
@pytest.mark.parametrize(
    ("net", "dynamic", "message"),
    [
        (FixedSize(), True, "FixedSize does not run on an input of shape (3, 3, 48, 48): "),
        (Looping(), True, "onnxruntime returns something else than torch for Looping at (3, 3"),
        (Deciding(), False, "cannot export Deciding to ONNX: "),
        (Noisy(), False, "onnxruntime returns something else than torch for Noisy"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(tmp_path, net, dynamic, message):
    with pytest.raises(ModelError, match=re.escape(message)) as caught:
        export_onnx(net, example(), tmp_path / "net.onnx", dynamic=dynamic)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_whose_size_became_fixed_is_refused():
    dims = [SimpleNamespace(dim_value=value) for value in (0, 3, 16, 0)]
    shape = SimpleNamespace(tensor_type=SimpleNamespace(shape=SimpleNamespace(dim=dims)))
    graph = SimpleNamespace(input=[SimpleNamespace(type=shape)])
    with pytest.raises(ModelError, match="the code of Net fixes height to 16: leave --dynamic out"):
        exporting.check_axes(SimpleNamespace(graph=graph), "Net")


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    message = "onnx and onnxscript not installed, which an ONNX export needs: pip install"
    with pytest.raises(ModelError, match=message):
        export_onnx(Plain().eval(), example(), tmp_path / "net.onnx")


@with_onnx
def test_without_onnxruntime_nothing_is_compared(tmp_path, monkeypatch):
    known = find_spec
    monkeypatch.setattr(
        exporting, "find_spec", lambda name: None if name == "onnxruntime" else known(name)
    )
    with pytest.warns(CoaWarning, match="onnxruntime is not installed, so the file was not com"):
        written = export_onnx(nn.Conv2d(3, 3, 1).eval(), example(), tmp_path / "net.onnx")
    assert (written.difference, written.sizes) == (None, ())


@with_onnx
def test_the_command_names_the_file_and_how_it_compares(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    said = call("export", "small_runs:Plain", "--size", "16x16", "--json")
    assert said.code == 0
    document = json.loads(said.out)
    assert document["path"] == "Plain.onnx"
    assert document["sizes"] == [[1, 3, 16, 16]]
    assert (tmp_path / "Plain.onnx").stat().st_size == document["file_bytes"]


def test_what_was_written_in_words():
    compared = Exported(
        path=Path("a.onnx"), file_bytes=2_000_000, opset=20, sizes=((1, 3, 8, 8),), difference=1e-6
    )
    assert sentence(compared) == "a.onnx: 2.00 MB, opset 20, within 1.0e-06 of torch at 1x3x8x8"
    plain = replace(compared, difference=None, sizes=())
    assert sentence(plain) == "a.onnx: 2.00 MB, opset 20, not compared with torch"


def test_a_missing_student_is_one_line(call):
    said = call("export", "nowhere")
    assert (said.code, said.out) == (2, "")
    assert said.err.endswith(
        "error: no student in nowhere: give a run folder, or builtin:teacher\n"
    )


@pytest.mark.parametrize(("source", "name"), [("a/b/", "b"), ("m.n:C", "C"), (".", "model")])
def test_names_of_files(source, name):
    assert name_of(source) == name

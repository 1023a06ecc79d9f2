"""Everything runs on a GPU: on one that is pretended, which mixes with nothing of the CPU."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch
from pretended_gpu import NAME, OnGpu, pretended_gpu
from safetensors.torch import load_file
from small_runs import Plain, seeded, small_recipe
from torch import nn
from zoo import constants, multihead_attention

from benchmarks import latency, speed
from coa_compress import Compressor, load
from coa_compress.errors import ModelError

__all__ = ["pretended_gpu"]


def test_it_refuses_what_a_gpu_refuses(pretended_gpu):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to("cuda")
    image = torch.rand(1, 3, 8, 8, device="cuda")

    output = net(image)
    output.square().mean().backward()

    assert output.device == net[0].weight.grad.device == pretended_gpu
    assert isinstance(net[0].weight, nn.Parameter)
    assert isinstance(net[0].weight, OnGpu)
    assert not isinstance(net[0].weight.cpu(), OnGpu)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        net(torch.rand(1, 3, 8, 8))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        output + torch.ones(4, 1, 1)
    with pytest.raises(TypeError, match="to numpy"):
        output.detach().numpy()
    with pytest.raises(RuntimeError, match="for generator"):
        torch.rand(1, device="cuda", generator=torch.Generator())
    assert float((output.detach() + torch.tensor(1.0)).sum()) == pytest.approx(
        float(output.detach().sum()) + output.numel()
    )


@pytest.fixture
def place(whole_run, tmp_path, monkeypatch):
    """The recipe of the whole run, for a GPU, and its folder."""
    text = whole_run.recipe.read_text(encoding="utf-8").replace("device: cpu", "device: auto")
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_whole_job_gives_the_student_that_the_cpu_gives(pretended_gpu, place, call, images):
    exact = [f"stages.{stage}.training.precision=fp32" for stage in ("distill", "adapt")]
    for out, device in (("there", "auto"), ("here", "cpu")):
        said = call("recipe", "r.yaml", "--device", device, "--out", out, "--set", *exact)
        assert said.code == 0, said.err
        assert "Tensor Cores" not in said.err

    report = json.loads((place / "there/report.json").read_text(encoding="utf-8"))
    assert report["provenance"]["device_name"] == NAME
    for name, most in (
        ("00_score/scores", 0.0),
        ("03_refit/student", 0.0),
        ("04_distill/student", 1e-4),
        ("05_adapt/adapted", 1e-4),
    ):
        there, here = (load_file(place / out / f"{name}.safetensors") for out in ("there", "here"))
        assert there.keys() == here.keys()
        for key, tensor in there.items():
            torch.testing.assert_close(tensor, here[key], rtol=0.0, atol=most)

    evaluated = call("evaluate", "there", "--data", images / "test", "--json")
    applied = call("apply", "there", images / "real", "--out", "clear", "--device", "cuda:0")
    profiled = call("profile", "there", "--size", "48x64", "--dtype", "bf16", "--channels-last")
    exported = call("export", "there", "--format", "onnx", "--out", "student.onnx")

    assert [one.code for one in (evaluated, applied, profiled, exported)] == [0, 0, 0, 0]
    assert f"device       {NAME}, 1 CPU threads" in profiled.out


def test_commands_use_the_gpu_unless_told_otherwise(
    pretended_gpu, place, call, images, monkeypatch
):
    seen = set()
    forward = nn.Conv2d.forward

    def noted(layer, image):
        seen.add(image.device.type)
        return forward(layer, image)

    monkeypatch.setattr(nn.Conv2d, "forward", noted)
    devices = {}
    for arguments in (
        ["apply", "builtin:teacher", images / "real", "--out", "clear"],
        ["evaluate", "builtin:teacher", "--data", images / "test"],
    ):
        for device in ("auto", "cpu"):
            seen.clear()
            shutil.rmtree("clear", ignore_errors=True)
            assert call(*arguments, "--device", device).code == 0
            devices[arguments[0], device] = set(seen)

    assert devices == {
        ("apply", "auto"): {"cuda"},
        ("apply", "cpu"): {"cpu"},
        ("evaluate", "auto"): {"cuda"},
        ("evaluate", "cpu"): {"cpu"},
    }


FULL = "CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of 8 GiB"


@pytest.fixture
def full(monkeypatch):
    """A GPU on which no convolution fits in training mode, or none at all."""

    def fill(*, training):
        forward = nn.Conv2d.forward

        def filled(layer, image):
            if image.is_cuda and (layer.training or not training):
                raise torch.OutOfMemoryError(FULL)
            return forward(layer, image)

        monkeypatch.setattr(nn.Conv2d, "forward", filled)

    return fill


def test_a_training_that_does_not_fit_into_memory_is_said(pretended_gpu, place, call, full):
    full(training=True)

    said = call("recipe", "r.yaml", "--out", "run")

    assert said.code == 2
    assert said.err.splitlines()[-1] == (
        "error: stage 'distill' on cuda does not fit into memory (CUDA out of memory. Tried to "
        "allocate 20.00 MiB.): lower stages.distill.training.batch_size and raise "
        "stages.distill.training.accumulate as much, or give smaller crops or another device; the "
        "stages before are kept"
    )


def test_what_does_not_fit_into_memory_is_one_line(pretended_gpu, place, call, full, images):
    full(training=False)

    recipe = call("recipe", "r.yaml", "--out", "run")
    apply = call("apply", "builtin:teacher", images / "real", "--out", "clear")
    evaluate = call("evaluate", "builtin:teacher", "--data", images / "test")
    sensitivity = call("sensitivity", "builtin:teacher", "--size", "32x32")

    out = r" does not fit into memory \(CUDA out of memory. Tried to allocate 20.00 MiB.\): give "
    for said, name, remedy in (
        (recipe, "the network on cuda", "smaller inputs, fewer calibration images, or another dev"),
        (apply, "apply", "smaller inputs, or another --device"),
        (evaluate, "evaluate", "smaller inputs, or another --device"),
        (sensitivity, "score", "smaller inputs, or another --device"),
    ):
        assert said.code == 2
        assert re.match(f"error: {name}{out}{remedy}", said.err.splitlines()[-1])
        assert "Traceback" not in said.err
    assert not (place / "run").exists()


class Keeping(Plain):
    """Keeps a mask for each input size, and a mean that is no buffer."""

    def __init__(self):
        super().__init__()
        self.mean, self.masks = torch.full((3, 1, 1), 0.4), {}

    def forward(self, image):
        size = image.shape[-2:]
        if size not in self.masks:
            self.masks[size] = torch.ones(size, device=image.device)
        mean = self.mean.to(image.device)
        return super().forward((image - mean) * self.masks[size]) + mean


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("kind", [Plain, Keeping])
def test_a_network_is_compressed_wherever_it_lies(pretended_gpu, tmp_path, on_gpu, kind):
    net = seeded(kind)
    recipe = small_recipe(device="cuda")

    result = Compressor(
        net.to("cuda") if on_gpu else net, recipe=recipe, out=tmp_path / "run"
    ).run()
    result.save(tmp_path / "student")

    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        here = load(tmp_path / "student")(image)
        there = load(tmp_path / "student").to("cuda")(image.to("cuda"))
    home = pretended_gpu if on_gpu else torch.device("cpu")
    assert {p.device for net in (result.student, result.teacher) for p in net.parameters()} == {
        home
    }
    assert there.device == pretended_gpu
    torch.testing.assert_close(there.cpu(), here)


@pytest.mark.parametrize("name", ["own_network", "own_task"])
def test_the_examples_run(pretended_gpu, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path / "run")])

    runpy.run_path(str(Path(__file__).parents[1] / "examples" / f"{name}.py"), run_name="__main__")

    assert "The student keeps" in capsys.readouterr().out


def test_a_student_in_graph_mode_goes_to_the_gpu(pretended_gpu, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(multihead_attention.build(), nn.Upsample(scale_factor=2))
    recipe = small_recipe(device="cuda")

    student = Compressor(net, recipe=recipe, out=tmp_path / "run").run().student

    assert type(student).__name__ == "GraphStudent"
    with torch.no_grad():
        here = student(torch.ones(2, 3, 24, 16))
        there = student.to("cuda")(torch.ones(2, 3, 24, 16, device="cuda"))
    assert there.device == pretended_gpu
    torch.testing.assert_close(there.cpu(), here)


def test_a_network_that_stays_on_the_cpu_is_said_before_anything_runs(pretended_gpu, tmp_path):
    recipe = small_recipe(device="cuda")

    with pytest.raises(ModelError, match=r"Network does not run on cuda: .*or give device: cpu"):
        Compressor(constants.build(), recipe=recipe, out=tmp_path / "run").run()

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("benchmark", [latency, speed])
def test_the_benchmarks_of_the_gpu_run(pretended_gpu, tmp_path, capsys, benchmark):
    benchmark.main(["--device", "cuda", "--quick", "--json", str(tmp_path / "found.json")])

    assert f"On {NAME}, " in capsys.readouterr().out

"""``coa-compress profile``: sweeps, ways to run, engines, cross-checks, and what it refuses."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from coa_compress.checkpoint import save_tensors
from coa_compress.cli.profile_tables import profile_text
from coa_compress.errors import ModelError, SettingError, is_out_of_memory
from coa_compress.exporting import export_onnx
from coa_compress.profiling import execution, onnx_runtime
from coa_compress.profiling.execution import Execution, prepared
from coa_compress.profiling.profile import OUT_OF_MEMORY, Sweep, profile_network

PLAIN = f"{__name__}:Plain"
CPU = torch.device("cpu")
FIELDS = {
    *("model", "device", "threads", "execution", "params", "file_bytes", "rows", "layers"),
    "cross_check",
}
ROW = {
    *("example_size", "macs", "activations", "peak_memory_mb", "latency", "other", "note"),
}


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))


class Greedy(Plain):
    """Finds no memory for images higher than 16."""

    def forward(self, x):
        if x.shape[-2] > 16:
            message = "CUDA out of memory. Tried to allocate 9 GiB"
            raise torch.OutOfMemoryError(message)
        return super().forward(x)


class Unlabelled(Plain):
    """Wants an even height."""

    def forward(self, x):
        if x.shape[-2] % 2:
            message = "the height must be even\nand more"
            raise RuntimeError(message)
        return super().forward(x)


def profiled(call, *arguments):
    said = call("profile", *arguments, "--rounds", "2", "--json")
    assert said.code == 0, said.err
    return json.loads(said.out)


def test_a_sweep_has_a_row_for_each_batch_at_each_size(call):
    found = profiled(call, PLAIN, "--size", "16x24", "--size", "8x8", "--batch", 1, "--batch", 3)

    assert found.keys() == FIELDS
    assert all(row.keys() == ROW for row in found["rows"])
    sizes = [row["example_size"] for row in found["rows"]]
    assert sizes == [[1, 3, 16, 24], [3, 3, 16, 24], [1, 3, 8, 8], [3, 3, 8, 8]]
    for row, pixels in zip(found["rows"], (16 * 24, 3 * 16 * 24, 64, 3 * 64), strict=True):
        assert row["macs"] == (3 * 8 * 9 + 8 * 3) * pixels
        assert row["activations"] == (8 + 3) * pixels
        assert row["latency"]["p10_ms"] <= row["latency"]["median_ms"] <= row["latency"]["p90_ms"]
        assert row["peak_memory_mb"] > 0
    assert sum(layer["macs"] for layer in found["layers"]) == found["rows"][0]["macs"]
    assert sum(layer["activations"] for layer in found["layers"]) == 11 * 16 * 24


def test_every_field_of_the_json_is_documented(call):
    page = (Path(__file__).parents[1] / "docs" / "speed.md").read_text(encoding="utf-8")
    found = profiled(call, PLAIN, "--size", "8x8")
    nested = [*found["rows"][0], *found["rows"][0]["latency"], *found["layers"][0]]
    for name in [*found, *found["execution"], *nested]:
        assert re.search(rf"`[\w.\[\]]*\b{name}\b(\[\])?`", page), name


def test_what_does_not_fit_is_noted_and_the_sweep_goes_on(call):
    source = f"{__name__}:Greedy"
    found = profiled(call, source, "--size", "32x16", "--size", "16x16")

    large, small = found["rows"]
    assert large["note"] == OUT_OF_MEMORY
    assert {large[name] for name in ROW - {"note", "example_size"}} == {None}
    assert small["note"] == ""
    assert small["macs"] == sum(layer["macs"] for layer in found["layers"])
    text = call("profile", source, "--size", "32x16", "--size", "16x16", "--rounds", 1).out
    assert "1x3x32x16  out of memory\n" in text
    assert "layers at 1x3x16x16" in text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("onnxruntime: Failed to allocate memory for requested buffer"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_size_that_the_network_refuses_is_one_line(call):
    said = call("profile", f"{__name__}:Unlabelled", "--size", "16x16", "--size", "15x15")
    assert said.code == 2
    assert said.err.splitlines()[-1] == (
        "error: Unlabelled does not run on an input of shape (1, 3, 15, 15) in fp32: "
        "the height must be even"
    )


def test_the_device_and_the_threads_are_always_named(call):
    threads = torch.get_num_threads()
    said = call("profile", PLAIN, "--size", "8x8", "--threads", 2, "--rounds", 1)
    found = profiled(call, PLAIN, "--size", "8x8", "--threads", 2)

    assert f"{found['device']}, 2 CPU threads" in said.out
    assert found["threads"] == found["rows"][0]["latency"]["threads"] == 2
    assert torch.get_num_threads() == threads


def test_a_time_without_a_device_is_refused():
    sweep = Sweep(shapes=[(1, 3, 4, 4)], device=" ", execution=Execution(), rounds=1)
    with pytest.raises(SettingError, match="a time needs the name of the device"):
        profile_network(Plain(), torch.zeros(1, 3, 4, 4), sweep)


def test_weights_of_a_factory_are_loaded_strictly(call, tmp_path):
    good, bad, dense = tmp_path / "a.safetensors", tmp_path / "b.pth", tmp_path / "c.safetensors"
    save_tensors(good, Plain().state_dict())
    torch.save({"state_dict": Plain().state_dict()}, bad)
    save_tensors(dense, {"0.weight": torch.zeros(1)})

    for weights in (good, bad):
        assert profiled(call, PLAIN, "--size", "8x8", "--weights", weights)["params"] == 251
    refused = call("profile", PLAIN, "--size", "8x8", "--weights", dense)
    own = call("profile", "builtin:teacher", "--weights", good)

    assert (refused.code, own.code) == (2, 2)
    assert f"{dense} does not fit Plain: 3 missing" in refused.err
    assert f"builtin:teacher has weights of its own: give {good} to" in own.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cuda-graph"], "a CUDA graph needs a GPU, the device is cpu: leave it out"),
        (["--dtype", "tf32"], "tf32 needs a GPU from Ampere on, the device is cpu: use fp32"),
        (["--engine", "onnxruntime", "--dtype", "bf16"], "runs the exported fp32 network: leave"),
        (["--table", "t.json", "--channels-last"], "a latency table is of one size and plain fp32"),
        (["--table", "t.json", "--batch", "1", "--batch", "2"], "a latency table is of one size"),
    ],
)
def test_what_makes_no_sense_is_one_line(call, options, words):
    said = call("profile", PLAIN, "--size", "8x8", *options)
    assert said.code == 2
    assert said.out == ""
    assert words in said.err.splitlines()[-1]


def test_a_format_without_kernels_is_one_line(call, monkeypatch):
    monkeypatch.setattr(execution, "_convolves", lambda dtype, device: False)
    said = call("profile", PLAIN, "--size", "8x8", "--dtype", "fp16")
    assert said.code == 2
    assert said.err.splitlines()[-1] == "error: torch has no fp16 convolution on cpu: use fp32"


def test_a_missing_engine_is_one_line(call, monkeypatch):
    monkeypatch.setattr(onnx_runtime, "find_spec", lambda name: None)
    said = call("profile", PLAIN, "--size", "8x8", "--engine", "onnxruntime")
    assert said.code == 2
    assert said.err.splitlines()[-1] == (
        "error: onnxruntime is not installed, which --engine onnxruntime needs: "
        "pip install 'coa-compress[onnx]'"
    )


def test_an_engine_without_the_device_is_refused():
    runtime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in runtime.get_available_providers():
        pytest.skip("this one has CUDA")
    with pytest.raises(ModelError, match="built without CUDAExecutionProvider: use --device cpu"):
        onnx_runtime.check_onnx_runtime(torch.device("cuda"))


def test_onnx_runtime_is_timed_in_turns_with_torch(call):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = profiled(call, PLAIN, "--size", "16x16", "--engine", "onnxruntime", "--threads", 1)

    other = found["rows"][0]["other"]
    assert other["name"] == "onnxruntime"
    assert other["latency"]["rounds"] == found["rows"][0]["latency"]["rounds"] == 2
    assert 0 < other["by_torch_p10"] <= other["by_torch"] <= other["by_torch_p90"]


def test_onnx_runtime_returns_what_torch_does(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, image = Plain().eval(), torch.rand(2, 3, 8, 8)
    export_onnx(net, image, tmp_path / "net.onnx")

    other = onnx_runtime.OnnxNetwork(tmp_path / "net.onnx", image, threads=1)
    other(image)

    torch.testing.assert_close(other.output(), net(image).detach())


def test_an_error_of_onnx_runtime_is_one_of_torch(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    net, image = Plain().eval(), torch.rand(1, 3, 8, 8)
    export_onnx(net, image, tmp_path / "net.onnx")
    other = onnx_runtime.OnnxNetwork(tmp_path / "net.onnx", image, threads=1)

    class Broken:
        def run_with_iobinding(self, binding):
            message = "Failed to allocate memory for requested buffer of size 9"
            raise state.RuntimeException(message)

    monkeypatch.setattr(other, "_session", Broken())
    with pytest.raises(RuntimeError, match="onnxruntime: Failed to allocate memory") as caught:
        other(image)
    assert is_out_of_memory(caught.value)


def test_the_cross_check_stands_beside_the_count(call):
    pytest.importorskip("fvcore")
    pytest.importorskip("thop")
    source = f"{__name__}:Upsampling"
    said = call("profile", source, "--size", "8x8", "--rounds", 1, "--cross-check")
    found = profiled(call, source, "--size", "8x8", "--cross-check")["cross_check"]

    ours = (3 * 4 * 9) * 64 + (4 * 3 * 4) * 64
    assert found["macs"] == found["macs_fvcore"] == ours
    assert found["macs_thop"] == ours + 3 * (4 * 3 * 4) * 64
    assert [one["operator"] for one in found["differences"]] == ["ConvTranspose2d"]
    assert "thop counts 12,288 for ConvTranspose2d, we 3,072: it counts a transposed" in said.out


class Upsampling(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(4, 3, 2, stride=2))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_copy_runs_in_the_format_and_layout(dtype):
    net, image = Plain(), torch.rand(1, 3, 8, 8)
    wanted = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]

    with prepared(net, image, Execution(dtype=dtype, channels_last=True)) as ready:
        output = ready.timed(ready.example)

    assert output.dtype == ready.example.dtype == wanted
    assert ready.example.is_contiguous(memory_format=torch.channels_last)
    assert ready.plain[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert net[0].weight.dtype == torch.float32
    torch.testing.assert_close(output.float(), net(image), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("fails", [False, True])
def test_products_are_exact_inside_and_settings_are_back_after(fails):
    before = torch.backends.cudnn.allow_tf32
    with suppress(ZeroDivisionError), prepared(Plain(), torch.zeros(1, 3, 4, 4), Execution()):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        if fails:
            raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 == before


def test_the_compiled_network_is_what_is_timed(monkeypatch):
    compiled = nn.Identity()
    asked = []
    monkeypatch.setattr(torch, "compile", lambda net, **given: asked.append(given) or compiled)

    with prepared(Plain(), torch.zeros(1, 3, 4, 4), Execution(compiled=True)) as ready:
        assert ready.timed is compiled
        assert isinstance(ready.plain, Plain)
    assert asked == [{"dynamic": False}]


@pytest.mark.filterwarnings("ignore")
def test_a_network_is_compiled_and_profiled(call, monkeypatch):
    real = torch.compile
    # the graph is captured, and no compiler is waited for
    monkeypatch.setattr(torch, "compile", lambda net, **given: real(net, backend="eager", **given))
    found = profiled(call, PLAIN, "--size", "16x16", "--compile", "--dtype", "bf16")
    assert found["execution"] == {
        **{"dtype": "bf16", "channels_last": False, "compiled": True, "cuda_graph": False}
    }
    assert found["rows"][0]["latency"]["median_ms"] > 0


def test_every_way_to_run_is_said():
    way = Execution(dtype="bf16", channels_last=True)
    sweep = Sweep(shapes=[(1, 3, 4, 4)], device="a CPU", execution=way, rounds=1)
    text = profile_text(profile_network(Plain(), torch.zeros(1, 3, 4, 4), sweep))
    assert "run as       bf16, channels last\n" in text
    assert f"a CPU, {torch.get_num_threads()} CPU threads" in text


def test_another_engine_has_its_own_columns():
    sweep = Sweep(shapes=[(1, 3, 4, 4)], device="a CPU", execution=Execution(), rounds=3)
    engine = ("another", lambda example: nn.Identity())

    profile = profile_network(Plain(), torch.zeros(1, 3, 4, 4), sweep, engine=engine)

    assert profile.rows[0].other.by_torch < 1
    head = profile_text(profile).split("\n\n")[1].splitlines()[0]
    assert head.split()[-4:] == ["another", "by", "torch", "p10-p90"]

"""The benchmarks of speed and latency: what they time, resume, refuse and show."""

import copy

import jsonschema
import pytest
import torch
from torch import nn

from benchmarks import bare_loop, latency, speed
from benchmarks.records import new_record, read_record
from coa_compress.errors import SettingError
from coa_compress.sources import open_source
from coa_compress.training.settings import TrainingSettings
from tests.nets import Residual

NUMBER = {"type": "number", "minimum": 0}
COMMON = {
    **{"schema_version": {"const": 1}, "seeds": {"const": [0]}, "threads": {"type": "integer"}},
    **{name: {"type": "string", "minLength": 1} for name in ("command", "written", "device_name")},
    **{"commit": {"type": ["string", "null"]}, "versions": {"type": "object"}},
}


def of(fields, required=None):
    return {"type": "object", "properties": fields, "required": list(required or fields)}


SPEED = of(
    {
        **COMMON,
        "engine": of(
            {
                "runs": {"type": "array", "items": {"additionalProperties": NUMBER}},
                "rows": {
                    "items": of({"seconds": NUMBER, "least": NUMBER, "most": NUMBER}),
                },
            }
        ),
        "loop": {
            "items": of(
                dict.fromkeys(
                    [
                        *("quotient", "quotient_p10", "quotient_p90", "fit_ms", "bare_ms"),
                        *("steps", "crop", "batch", "weights_differ_by"),
                    ],
                    NUMBER,
                )
            )
        },
        "data": {"items": of({"images_per_s": NUMBER, "needed_per_s": NUMBER})},
    },
)
LATENCY = of(
    {
        **{name: shape for name, shape in COMMON.items() if name != "seeds"},
        "rows": {
            "items": of(
                {
                    **{
                        name: {"type": "string"}
                        for name in ("network", "size", "dtype", "mode", "device_name", "written")
                    },
                    **dict.fromkeys(
                        [
                            *("median_ms", "p10_ms", "p90_ms", "speedup", "speedup_p10"),
                            *("speedup_p90", "peak_memory_mb", "params", "macs_at_256x256"),
                        ],
                        NUMBER,
                    ),
                }
            )
        },
    }
)


class Small(nn.Sequential):
    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(Residual(16, 16), nn.Conv2d(16, 3, 1)),
        )


class Narrow(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1))


class Full(nn.Module):
    def forward(self, x):
        message = "CUDA out of memory"
        raise torch.OutOfMemoryError(message)


def small_loop(steps=4):
    # Adam makes much of the rounding of gradients that are almost zero; these weights have none
    torch.manual_seed(0)
    settings = TrainingSettings(
        steps=bare_loop.WARMUP + 1 + steps, warmup_steps=2, batch_size=2, precision="fp32"
    )
    return bare_loop.loop_row("a", Small(), crop=16, batch=2, settings=settings, device="cpu")


def test_both_loops_do_the_same_maths():
    row = small_loop()

    assert row["weights_differ_by"] < 1e-5
    assert row["steps"] == 4
    assert 0 < row["quotient_p10"] <= row["quotient"] <= row["quotient_p90"]
    assert row["fit_ms"] > 0 < row["bare_ms"]


def test_another_network_would_be_noticed():
    net, other = Small(), Small()
    assert bare_loop._difference(net, copy.deepcopy(net)) == 0.0
    assert bare_loop._difference(net, other) > 0.0


def test_every_stage_of_the_engine_is_timed_once():
    source = open_source(f"{__name__}:Small", size=(32, 32))

    seconds, state = speed.engine_seconds(source, keep=0.7, device="cpu")

    assert list(seconds) == ["analyze", "score", "allocate", "prune", "refit"]
    assert min(seconds.values()) > 0
    assert state.allocation.macs <= 0.7 * state.allocation.teacher_macs
    rows = speed.engine_rows([seconds, {name: 2 * took for name, took in seconds.items()}])
    assert rows[-1]["most"] == pytest.approx(2 * sum(seconds.values()))
    assert rows[-1]["least"] == pytest.approx(sum(seconds.values()))


def test_the_record_of_speed_has_its_schema_and_is_shown(tmp_path, monkeypatch, capsys):
    file, threads = tmp_path / "speed.json", torch.get_num_threads()
    source = open_source(f"{__name__}:Small", size=(32, 32))
    monkeypatch.setattr(speed, "open_source", lambda name, size: source)

    speed.main(["--quick", "--keep", "0.7", "--threads", "1", "--json", str(file)])

    record = read_record(file)
    jsonschema.validate(record, SPEED)
    assert torch.get_num_threads() == threads
    assert [row["network"] for row in record["loop"]] == ["teacher", "student, 70.0% of the MACs"]
    shown = capsys.readouterr().out
    assert "| together | " in shown
    assert "Wanted: at most 60 s together." in shown
    assert "| workers | crops a second | a step's need | over need |" in shown


def test_a_part_alone_is_shown_alone():
    row = {"workers": 1, "images_per_s": 30.0, "needed_per_s": 20.0}
    shown = speed.render({**new_record("speed", []), "data": [row]})
    assert "| 1 | 30 | 20 | 1.5 |" in shown
    assert "stage" not in shown


@pytest.fixture
def two_networks(monkeypatch):
    monkeypatch.setattr(
        latency, "networks", lambda keeps: {"teacher": Small().eval(), "student": Narrow().eval()}
    )


def test_rows_of_latency_are_measured_once(two_networks, tmp_path, capsys):
    file = tmp_path / "latency.json"
    arguments = ["--device", "cpu", "--dtype", "fp32", "bf16", "--mode", "eager", "--rounds", "3"]
    arguments += ["--json", str(file), "--size"]

    latency.main([*arguments, "16x16"])
    first = read_record(file)
    latency.main([*arguments, "16x16", "24x16"])
    second = read_record(file)

    jsonschema.validate(second, LATENCY)
    assert second["rows"][:4] == first["rows"]
    assert [(r["size"], r["dtype"], r["network"]) for r in second["rows"]] == [
        (size, dtype, name)
        for size in ("16x16", "24x16")
        for dtype in ("fp32", "bf16")
        for name in ("teacher", "student")
    ]
    assert [row["speedup"] for row in second["rows"][::2]] == [1.0] * 4
    assert all(row["channels_last"] == (row["dtype"] == "bf16") for row in second["rows"])
    shown = capsys.readouterr().out
    assert "| student | 24x16 | bf16 | eager | " in shown
    assert f"On {second['device_name']}" in shown


def test_networks_that_do_not_fit_have_a_row_that_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(latency, "networks", lambda keeps: {"teacher": Full()})
    monkeypatch.setattr(latency, "_costs", lambda models: {"teacher": {}})
    file = tmp_path / "latency.json"

    latency.main(["--quick", "--device", "cpu", "--json", str(file)])

    assert [row["note"] for row in read_record(file)["rows"]] == ["out of memory"] * 4
    assert "| teacher | 96x128 | bf16 | eager | out of memory |  |  |" in capsys.readouterr().out


def test_latency_refuses_what_cannot_be(two_networks, tmp_path):
    file = str(tmp_path / "a.json")
    with pytest.raises(SettingError, match="a CUDA graph needs a GPU"):
        latency.main(["--device", "cpu", "--mode", "graph", "--json", file])
    with pytest.raises(SettingError, match=r"--keep must be fractions in \(0, 1\), got \[1\.0\]"):
        latency.main(["--device", "cpu", "--keep", "1", "--json", file])

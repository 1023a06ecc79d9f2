"""The benchmark of the measures without truth: what it writes, keeps, and shows."""

import json

import pytest
import torch

from benchmarks import measures
from coa_compress.tasks.dehazing.photographs import photograph_scenes
from coa_compress.tasks.dehazing.scenes import Scene


@pytest.fixture
def one_scene(monkeypatch):
    scene = photograph_scenes("test")[0]
    small = Scene(
        name=scene.name,
        domain=scene.domain,
        clear=scene.clear[:, :112, :160],
        depth=scene.depth[..., :112, :160],
    )
    monkeypatch.setattr(measures, "photograph_scenes", lambda split: (small,))


def test_quick_writes_a_record_that_is_not_made_again(one_scene, tmp_path, monkeypatch, capsys):
    path = tmp_path / "m.json"
    measures.main(["--quick", "--json", str(path)])

    record = json.loads(path.read_text())
    found = record["parts"]["synthetic haze"]["values"]
    assert list(found) == ["0.0", "0.25", "0.5", "1.0", "2.0"]
    assert set(found["0.0"]) == {"fade", "dark_channel_density", "niqe"}
    assert len(found["2.0"]["fade"]) == 2
    assert "| FADE, our statistics | 1.00 |" in capsys.readouterr().out

    monkeypatch.setattr(measures, "_cost", lambda data: record["ms_per_megapixel"])
    monkeypatch.setattr(measures.Bench, "measure", lambda self, images: pytest.fail("made again"))
    measures.main(["--quick", "--json", str(path)])


def test_a_part_of_other_statistics_is_made_again(one_scene, tmp_path, monkeypatch):
    path = tmp_path / "m.json"
    monkeypatch.setattr(
        measures.Bench,
        "measure",
        lambda self, images: {"niqe": [1.0], "fade": [2.0], "dark_channel_density": [0.5]},
    )
    monkeypatch.setattr(
        measures.Bench,
        "ms_per_megapixel",
        lambda self: dict.fromkeys(("fade", "niqe", "dark_channel_density"), 1),
    )
    monkeypatch.setattr(measures, "render", lambda record: "")
    measures.main(["--quick", "--json", str(path)])
    old = json.loads(path.read_text())
    old["statistics"] = "other"
    old["parts"]["synthetic haze"]["values"] = {}
    path.write_text(json.dumps(old))

    measures.main(["--quick", "--json", str(path)])

    assert len(json.loads(path.read_text())["parts"]["synthetic haze"]["values"]) == 5


def test_pairs_are_counted_and_ranks_correlated():
    values = {"niqe": [1.0, 1.0], "dark_channel_density": [0.5, 0.4], "fade": [2.0, 3.0]}
    clear = values | {"fade": [1.0, 4.0]}
    strengths = {
        str(depth): {name: [depth + 0.1 * number for number in range(2)] for name in values}
        for depth in measures.THICKNESS
    }
    cost = {"fade": 10, "dark_channel_density": 2, "niqe": 5}
    record = {
        "device": "cpu",
        "ms_per_megapixel": cost,
        "command": "python -m benchmarks.measures",
        "parts": {
            "test/pairs": {"values": {"hazy": values, "clear": clear}},
            "synthetic haze": {"values": strengths},
        },
    }

    assert "| FADE, our statistics | 1 of 2 | 1.00 | 0.98 | 10 |" in measures.render(record)
    assert "| dark channel density | 0 of 2 | 1.00 | 0.98 | 2 |" in measures.render(record)
    assert "| test/pairs, clear | 2 | 2.50 | 0.45 | 1.00 |" in measures.values_table(record)


def test_a_falling_measure_correlates_below_zero():
    values = [[5.0, 1.0], [4.0, 2.0], [3.0, 3.0]]

    within, _ = measures._rank_correlations(values)

    assert within == pytest.approx(0.0)
    assert torch.isfinite(torch.tensor(within))

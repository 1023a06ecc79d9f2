"""The benchmarks of data: what training on scenes is worth, and how fast batches come."""

import pytest
import torch

from benchmarks import data_rate, scenes
from benchmarks.records import new_record, read_record, write_record
from coa_compress.errors import DataError, SettingError
from coa_compress.tasks.dehazing.scenes import render_clutter
from coa_compress.tasks.images import write_image


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of the layout of the development data, and an arm of one small scene."""
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    for folder in ("train_extra/real_pairs", "test/sots_indoor", "test/sots_outdoor"):
        for kind, shown in (("hazy", image / 2 + 0.4), ("gt", image)):
            write_image(shown, tmp_path / folder / kind / "a.png")
    for kind in ("hazy", "gt"):
        write_image(image, tmp_path / "test/real_pairs" / kind / "a.png")
    small = render_clutter("indoor", seed=1, size=(160, 160))
    monkeypatch.setattr(scenes, "ARMS", {"small": lambda _data: scenes.by_domain([small])})
    return tmp_path


def test_an_arm_is_trained_once_and_measured_on_every_split(data, capsys):
    file = data / "scenes.json"
    arguments = ["--data", str(data), "--arms", "small", "--json", str(file)]
    arguments += ["--steps", "2", "--batch", "2", "--images", "1"]

    scenes.main(arguments)
    first = read_record(file)
    scenes.main(arguments)

    splits = ["train_extra/real_pairs", "test/sots_indoor", "test/sots_outdoor", "test/real_pairs"]
    assert read_record(file)["rows"] == first["rows"]
    assert list(first["rows"][0]["psnr_db"]) == splits == list(first["input"])
    assert first["input"]["test/real_pairs"] == 100.0
    assert "| small | " in capsys.readouterr().out
    with pytest.raises(DataError, match="holds rows of other settings: give another --json"):
        scenes.main([*arguments, "--batch", "3"])


def test_unknown_arms_and_missing_data_are_refused(data):
    with pytest.raises(SettingError, match="no arm 'x': use small"):
        scenes.main(["--data", str(data), "--arms", "x", "--json", str(data / "y.json")])


def test_the_table_of_scenes_has_means_and_spreads(tmp_path):
    rows = [{"arm": "a", "seed": seed, "psnr_db": {"one": 20.0 + seed}} for seed in (0, 2)]
    record = {**new_record("scenes", []), "steps": 5, "batch": 2, "input": {"one": 12.0}}
    write_record(tmp_path / "a.json", {**record, "rows": rows})

    table = scenes.render(read_record(tmp_path / "a.json"))

    assert "| hazy input | 12.00 |" in table
    assert "| a | 21.00 ± 1.41 |" in table


def test_the_rate_of_batches_is_held_against_the_need(tmp_path, capsys):
    file = tmp_path / "rate.json"
    threads = torch.get_num_threads()

    data_rate.main(["--quick", "--workers", "0", "--builtin-only", "--json", str(file)])

    record = read_record(file)
    assert torch.get_num_threads() == threads
    assert [row["images"] for row in record["rows"]] == ["procedural scenes"]
    assert record["needed_per_s"] > 0
    assert "| procedural scenes | 0 | " in capsys.readouterr().out

"""The benchmark of distillation: rows are made once, and what is returned of the gap."""

import pytest

from benchmarks import distill
from benchmarks.records import read_record
from coa_compress.errors import DataError
from coa_compress.stages.distill import DistillSettings


def figures(truth, teacher=30.0):
    return {
        "one": {"truth": truth - 1, "teacher": teacher},
        "two": {"truth": truth + 1, "teacher": 9.0},
    }


def row(variant, seed, truth):
    return {"variant": variant, "seed": seed, "psnr_db": figures(truth), "validation_db": truth}


RECORD = {
    "teacher": figures(24.0),
    "start": {"0": figures(18.0), "1": figures(18.0)},
    "kept": 0.125,
    "settings": {"steps": 4, "crop": 32, "train": "data"},
    "command": "python -m benchmarks.distill",
    "rows": [row("truth", 0, 20.0), row("truth", 1, 19.0), row("l2", 0, 22.0), row("l2", 1, 23.0)],
}


def test_the_gap_is_that_of_the_same_seed():
    assert distill.returned(RECORD, "l2") == pytest.approx([0.5, 0.8])
    assert distill.returned(RECORD, "truth") == [0.0, 0.0]
    assert distill.returned({**RECORD, "rows": [row("l2", 0, 22.0)]}, "l2") == []


def test_the_table_has_a_line_for_each_variant():
    table = distill.render(RECORD)

    assert (
        "| `l2` | 2 | 21.50 ± 0.71 | 23.50 ± 0.71 | 30.00 ± 0.00 | 9.00 ± 0.00 | 22.50 ± 0.71 "
        in table
    )
    assert "| 65 ± 21% |" in table
    assert "| (teacher) |  | 23.00 | 25.00 |  |  |  | 100% |" in table
    assert "12.5% of the MACs" in table


def test_every_variant_is_a_setting():
    for variant in distill.VARIANTS.values():
        DistillSettings(**variant)


@pytest.mark.parametrize("variant", distill.VARIANTS)
def test_every_variant_has_the_same_steps_in_all(variant):
    settings = distill.distill_settings(variant, 401)

    assert (settings.rounds - 1) * (settings.round_steps or 0) + settings.training.steps == 401


@pytest.mark.slow
def test_rows_are_made_once(tmp_path, capsys):
    path = tmp_path / "distill.json"
    arguments = ["--quick", "--json", str(path)]

    distill.main(arguments)
    first = read_record(path)
    distill.main(arguments)

    assert read_record(path)["rows"] == first["rows"]
    assert [r["variant"] for r in first["rows"]] == ["truth", "l2"]
    assert first["kept"] <= 0.125
    assert "| `l2` | 1 |" in capsys.readouterr().out
    with pytest.raises(DataError, match=r"holds rows of .*: give another --json"):
        distill.main([*arguments, "--keep", "0.5"])

"""The benchmark of ablations runs what the command runs, and shows it."""

import pytest
from small_runs import BUILTIN_WEIGHTS

from benchmarks import ablation
from benchmarks.records import read_record
from coa_compress.recipe.ablation import load_ablation

pytestmark = pytest.mark.skipif(
    not BUILTIN_WEIGHTS.is_file(), reason="the built-in teacher is not trained"
)


@pytest.mark.slow
def test_a_quick_ablation_is_run_and_shown(tmp_path, images, capsys):
    file = tmp_path / "ablation.json"
    arguments = ["--quick", "--seeds", "1", "--only", "auxiliary", "--out", str(tmp_path / "runs")]
    arguments += ["--json", str(file)]
    folders = [f"task.{split}={images / split}" for split in ("train", "real", "test")]

    ablation.main([*arguments, "--set", *folders])

    record = read_record(file)
    assert record["benchmark"] == "ablation"
    assert [row["variant"] for row in record["rows"]] == ["full", "auxiliary"]
    shown = ablation.render(record)
    assert "- auxiliary: `stages.score=off`, " in shown
    assert "| full | " in shown
    assert shown.endswith(f"Made by `{record['command']}`.")
    assert shown in capsys.readouterr().out
    assert str(tmp_path) not in str(record["rows"])


@pytest.mark.parametrize("settings", [ablation.QUICK, ablation.SHORT])
def test_every_length_leaves_each_variant_its_meaning(settings):
    names = [variant.name for variant in load_ablation(ablation._FILE).variants]

    assert [v.name for v in load_ablation(ablation._FILE, settings).variants] == names

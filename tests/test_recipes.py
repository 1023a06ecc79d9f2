"""Every recipe of the repository loads and can be planned; the long ones run, if shortened."""

import json
import re
from pathlib import Path

import pytest
from small_runs import BUILTIN_WEIGHTS

from coa_compress.recipe.ablation import load_ablation
from coa_compress.recipe.files import load_recipe, recipe_digest

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "ablation.yaml")
FEW = [
    "task.crop=32",
    "task.example_size=[32, 32]",
    "task.validation_images=2",
    "task.calibration_images=2",
    "stages.refit.positions=64",
    "stages.distill.taps=1",
    *(f"stages.{stage}.training.steps=2" for stage in ("distill", "adapt")),
    *(f"stages.{stage}.training.batch_size=1" for stage in ("distill", "adapt")),
    "stages.measure=off",
]
needs_teacher = pytest.mark.skipif(
    not BUILTIN_WEIGHTS.is_file(), reason="the built-in teacher is not trained"
)


def places(images):
    return [f"task.{split}={images / split}" for split in ("train", "real", "test")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path):
    assert load_recipe(path).name == path.stem


def test_own_photographs_are_given_to_the_student_of_the_main_job():
    main, own = (load_recipe(FOLDER / f"{name}.yaml") for name in ("dehaze", "dehaze_photos"))

    assert recipe_digest(main, until="distill") == recipe_digest(own, until="distill")
    assert recipe_digest(main, until="adapt") != recipe_digest(own, until="adapt")


@needs_teacher
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_compresses_can_be_planned(path, call, images):
    short = ["task.validation_images=2", "task.crop=64", "task.train=" + str(images / "train")]
    recipe = load_recipe(path)
    if "adapt" in recipe.stages:
        short += ["task.calibration_images=2", *places(images)]
    if recipe.task.name == "restoration":
        short = ["task.calibration_images=2", "model=coa_compress.tasks.dehazing.networks:HazeUNet"]

    said = call("recipe", path, "--plan", "--set", *short)

    if "allocate" in recipe.stages:
        keep = recipe.stages["allocate"].keep_macs
        (kept,) = re.findall(r"^macs .* of .* ([0-9.]+)%$", said.out, flags=re.MULTILINE)
        assert 0.85 * keep <= float(kept) / 100 <= keep
        assert said.out.rstrip().endswith(" -> ".join(recipe.stages))
    else:
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith("error: there is nothing to plan: add stages 'score' and ")


@needs_teacher
@pytest.mark.parametrize("name", ["dehaze_full", "coa_paper"])
@pytest.mark.slow
def test_a_long_recipe_runs_when_it_is_made_short(name, call, images, tmp_path):
    few = [item for item in FEW if name != "coa_paper" or "refit" not in item]
    out = tmp_path / "run"
    said = call("recipe", FOLDER / f"{name}.yaml", "--out", out, "--set", *few, *places(images))

    assert said.code == 0, said.err
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["gate"]["accepted"] in (True, False)
    assert list(report["histories"]) == ["distill", "adapt"]
    assert report["allocation"]["macs_kept"] <= 0.125


def test_the_paper_s_figures_are_in_its_recipe():
    recipe = load_recipe(FOLDER / "coa_paper.yaml")
    distill, adapt = recipe.stages["distill"], recipe.stages["adapt"]

    assert (distill.training.steps, distill.training.batch_size) == (20 * 5000, 24)
    assert (distill.training.learning_rate, distill.training.final_learning_rate) == (1e-4, 1e-6)
    assert distill.truth == {"l1": 0.8, "ssim": 0.2}
    assert (adapt.training.steps, adapt.training.learning_rate) == (20 * 1000, 1e-7)
    assert (adapt.mean_teacher.decay, adapt.mean_teacher.interval) == (0.95, 1000)
    assert (distill.feature, distill.contrastive) == ({"coa": 1.0}, 0.05)
    assert recipe.task.settings.crop == 256


def test_the_ablation_takes_every_part_away():
    ablation = load_ablation(FOLDER / "ablation.yaml")
    stages = {variant.name: variant.recipe.stages for variant in ablation.variants}

    assert list(stages) == [
        *("full", "core", "auxiliary", "no_importance", "no_refit", "no_features"),
        *("no_labels", "own_labels", "plain_labels", "no_replay", "no_retain"),
        *("guidance", "ema", "no_gate"),
    ]
    assert "adapt" not in stages["core"]
    assert list(stages["auxiliary"]) == ["adapt", "measure"]
    assert stages["no_features"]["distill"].feature == 0
    assert stages["no_labels"]["adapt"].consistency == 0
    assert stages["own_labels"]["adapt"].labeler == "student"
    assert stages["ema"]["adapt"].training.ema_decay == 0.95
    assert stages["plain_labels"]["adapt"].label == "plain"
    assert (stages["no_replay"]["adapt"].replay, stages["no_replay"]["adapt"].retain) == ({}, {})
    assert stages["no_retain"]["adapt"].replay == {"l1": 1.0}
    assert stages["no_retain"]["adapt"].retain == {}
    assert stages["guidance"]["adapt"].prior == {"dark_channel": 0.03}

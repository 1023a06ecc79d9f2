"""Ablations: files, the shared cache of stages, and what a difference means."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_runs import Doubling, files_in

from coa_compress import load
from coa_compress.ablation.comparison import Spread, difference, spread_of, verdict
from coa_compress.ablation.rows import measures_of, seconds_in_all, seconds_of
from coa_compress.ablation.running import run_ablation
from coa_compress.ablation.texts import markdown_of, plain_text
from coa_compress.compressor import Compressor
from coa_compress.errors import RecipeError, RunError
from coa_compress.gate import DomainMeasures
from coa_compress.recipe.ablation import load_ablation
from coa_compress.recipe.files import TASKS, load_recipe
from coa_compress.runs import open_run, own_folder
from coa_compress.stages.cache import StageCache

ROOT = Path(__file__).parents[1]
RECIPE = """\
name: doubling
device: cpu
task: {name: doubling}
stages:
  score: {scorer: magnitude}
  allocate: {keep_macs: 0.6, round_to: 2, min_channels: 2}
  prune: {}
  refit: {positions: 64}
  distill: {training: {steps: 4, batch_size: 1, validate_every: 4, checkpoint_every: 1}, taps: 1}
  adapt: {training: {steps: 3, batch_size: 1}, gate: {min_defect_fall: 0.0}}
  measure: {latency_rounds: 1}
"""
ABLATION = """\
recipe: doubling.yaml
measures: {l1: lower}
settings: [stages.distill.feature=0.1]
variants:
  full: []
  core: [stages.adapt=off]
  auxiliary:
    - stages.score=off
    - stages.allocate=off
    - stages.prune=off
    - stages.refit=off
    - stages.distill=off
"""


class Real(Doubling):
    """A task by name, with real inputs; its training may break down."""

    breaks_at = -1
    made = 0

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        pass

    def __init__(self, settings=None):
        super().__init__()

    guidance = {"bright": lambda output, real: output.mean().abs()}  # noqa: RUF012

    def training_batch(self, batch_size, generator):
        Real.made += 1
        if Real.made == Real.breaks_at:
            message = "the power is gone"
            raise OSError(message)
        return super().training_batch(batch_size, generator)

    def real_batch(self, batch_size, generator):
        return torch.rand(batch_size, 3, 16, 16, generator=generator)

    def domain_measures(self, model):
        return DomainMeasures(
            defects={"wrong": [1.0]}, qualities={"good": [1.0]}, skill=[self.validate(model)]
        )


@pytest.fixture(scope="module", autouse=True)
def task():
    TASKS.register("doubling")(Real)
    yield
    del TASKS._objects["doubling"]


@pytest.fixture(autouse=True)
def unbroken():
    Real.breaks_at = -1
    Real.made = 0


def put(folder, text=ABLATION, recipe=RECIPE):
    (folder / "doubling.yaml").write_text(recipe, encoding="utf-8")
    (folder / "a.yaml").write_text(text, encoding="utf-8")
    return folder / "a.yaml"


def errors(folder, text, *overrides, **options):
    with pytest.raises(RecipeError, match=":") as caught:
        load_ablation(put(folder, text), overrides, **options)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    ablation = load_ablation(put(folder))
    said = []
    document = run_ablation(ablation, range(2), folder / "out", announce=said.append)
    return folder, document, said


def test_every_variant_is_run_with_every_seed(finished):
    folder, document, said = finished

    assert [(row["variant"], row["seed"]) for row in document["rows"]] == [
        (variant, seed) for seed in (0, 1) for variant in ("full", "core", "auxiliary")
    ]
    assert said[0] == "full, seed 0 (run 1 of 6)"
    written = json.loads((folder / "out/ablation.json").read_text(encoding="utf-8"))
    assert written == document
    assert (folder / "out/ablation.md").read_text(encoding="utf-8") == markdown_of(document)


def test_equal_stages_are_computed_once(finished):
    folder, document, _ = finished
    rows = {(row["variant"], row["seed"]): row for row in document["rows"]}
    full, core = rows["full", 0]["stages"], rows["core", 0]["stages"]

    for name in ("score", "allocate", "prune", "refit", "distill"):
        assert full[name] == core[name]
    assert full["measure"]["digest"] != core["measure"]["digest"]
    assert full["score"]["digest"] != rows["full", 1]["stages"]["score"]["digest"]
    digests = {s["digest"] for row in document["rows"] for s in row["stages"].values()}
    kept = {path.name.rpartition("-")[2] for path in (folder / "out/cache").glob("*-*")}
    assert kept == digests
    assert len(digests) == 2 * (7 + 1 + 2)
    saved = sum(map(seconds_of, document["rows"])) - seconds_in_all(document["rows"])
    shared = ("score", "allocate", "prune", "refit", "distill")
    expected = sum(rows["core", seed]["stages"][n]["seconds"] for seed in (0, 1) for n in shared)
    assert saved == pytest.approx(expected)


def test_without_compression_the_teacher_itself_is_adapted(finished):
    folder, document, _ = finished
    run = folder / "out/auxiliary/seed-0"
    row = document["rows"][2]
    student, teacher = load(run / "student"), Real().build_teacher()

    assert row["measurements"].keys() == {"teacher", "adapted"}
    assert row["measurements"]["adapted"]["macs"] == row["measurements"]["teacher"]["macs"]
    if row["final"] == "adapted":
        assert not torch.equal(student.first.weight, teacher.first.weight)
    assert student.first.weight.shape == teacher.first.weight.shape


def test_the_tables_show_each_variant(finished):
    _, document, _ = finished
    text, page = plain_text(document), markdown_of(document)

    assert re.search(r"^core +.* \u2013 +2 ", text, flags=re.MULTILINE)
    assert "- core: `stages.adapt=off`" in page
    assert "For all variants: `stages.distill.feature=0.1`." in page
    assert "| full | " in page.partition("## Differences")[0]
    assert "| full | " not in page.partition("## Differences")[2].partition("## What")[0]
    assert "6 runs of 3 variants" in text
    assert measures_of(document["rows"], ["l1"]) == [("l1", "all")]
    change = next(one for one in document["differences"] if one["variant"] == "core")
    ours, theirs = (
        [row["measurements"][row["final"]]["l1"]["all"] for row in document["rows"][at::3]]
        for at in (1, 0)
    )
    expected = spread_of([a - b for a, b in zip(ours, theirs, strict=True)])
    assert (change["mean"], change["deviation"]) == (expected.mean, expected.deviation)


def test_an_ablation_that_broke_down_goes_on_and_ends_with_the_same_bits(finished, tmp_path):
    whole, document, _ = finished
    ablation = load_ablation(put(tmp_path))
    Real.breaks_at = 3
    with pytest.raises(OSError, match="the power is gone"):
        run_ablation(ablation, range(2), tmp_path / "out")
    assert json.loads((tmp_path / "out/ablation.json").read_bytes())["rows"] == []
    Real.breaks_at = -1

    again = run_ablation(ablation, range(2), tmp_path / "out")

    mine, theirs = files_in(tmp_path / "out"), files_in(whole / "out")
    weights = [name for name in theirs if name.endswith(".safetensors")]
    assert len(weights) > 20
    assert {name: mine[name] for name in weights} == {name: theirs[name] for name in weights}
    assert [row["measurements"]["teacher"]["l1"] for row in again["rows"]] == [
        row["measurements"]["teacher"]["l1"] for row in document["rows"]
    ]


def test_a_plain_run_takes_its_stages_from_a_cache_and_adds_its_own(finished, tmp_path):
    folder, _, _ = finished
    cache = folder / "out/cache"
    before = set(files_in(cache))
    recipe = load_recipe(folder / "doubling.yaml", ["stages.distill.feature=0.1"])
    Real.made = 0

    Compressor(recipe=recipe, out=tmp_path / "run").run(cache=cache)

    assert Real.made == 0
    assert set(files_in(cache)) == before
    other = load_recipe(folder / "doubling.yaml", ["stages.distill.feature=0.2"])
    Compressor(recipe=other, out=tmp_path / "other").run(cache=cache)
    assert Real.made > 0
    assert len(set(files_in(cache)) - before) > 0


def test_what_a_run_changes_in_its_folder_leaves_the_cache_alone(tmp_path):
    cache = StageCache(tmp_path / "cache")
    with open_run(tmp_path / "a") as run:
        stage = run.begin("00_score", "d")
        (stage / "inner").mkdir()
        (stage / "inner/x").write_text("x", encoding="utf-8")
        run.mark_done(stage, "d", 2.0)
        cache.keep("score", "d", stage)
        cache.keep("score", "d", stage)
        run.begin(stage, "d")
        run.reset()
    with open_run(tmp_path / "b") as run:
        folder = run.stage_folder(3, "score")
        assert cache.has("score", "d")
        assert not cache.has("score", "e")
        run.begin(folder, "old")
        cache.give("score", "d", run, folder)
        assert run.digest(folder) == "d"
        assert run.seconds(folder) == 2.0
        assert (folder / "inner/x").read_text(encoding="utf-8") == "x"
        assert run.digest(run.stage_folder(4, "prune")) is None


def test_a_folder_of_something_else_is_no_cache_and_no_ablation(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work", encoding="utf-8")
    with open_run(tmp_path / "a") as run:
        stage = run.begin("00_score", "d")
        run.mark_done(stage, "d", 2.0)
        with pytest.raises(RunError, match=r"is no cache folder \(it holds 'thesis.txt'"):
            StageCache(mine).keep("score", "d", stage)
        (stage.parent / "01_prune").mkdir()
        (stage.parent / "01_prune/mine").touch()
        with pytest.raises(RunError, match="was not made by this run"):
            run.adopt("01_prune", stage)
    put(tmp_path)
    with pytest.raises(RunError, match=r"is no ablation folder \(it holds 'thesis.txt'"):
        run_ablation(load_ablation(tmp_path / "a.yaml"), [0], mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_two_processes_do_not_run_one_ablation(tmp_path):
    ablation = load_ablation(put(tmp_path))
    with (
        own_folder(tmp_path / "out", "ablation"),
        pytest.raises(RunError, match="is in use by another ablation: wait"),
    ):
        run_ablation(ablation, [0], tmp_path / "out")


def test_a_variant_that_cannot_run_is_named_before_anything_runs(tmp_path):
    text = f"{ABLATION}  bad: [stages.adapt.prior={{brigt: 1}}]\n".replace(
        "[stages.adapt.prior={brigt: 1}]", '["stages.adapt.prior={brigt: 1}"]'
    )
    with pytest.raises(Exception, match=r"variant 'bad': .*'brigt': did you mean bright"):
        run_ablation(load_ablation(put(tmp_path, text)), [0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_all_problems_of_a_file_are_named_with_their_lines(tmp_path):
    text = "recipe: doubling.yaml\nreferenc: x\nvariants:\n  full: []\n  x: 3\n  a b: []\n"
    assert errors(tmp_path, text) == [
        "a.yaml:2: unknown key 'referenc': did you mean reference? known: measures, name, out, "
        "recipe, reference, settings, variants",
        "a.yaml:5: variants.x: must be a list, got 3",
        "a.yaml:6: variants.a b: must be letters, digits, '.', '_' and '-' (it names the run "
        "folder), got 'a b'",
    ]


def test_all_problems_of_all_variants_are_named_with_their_lines(tmp_path):
    text = (
        "recipe: doubling.yaml\nvariants:\n  full: []\n  x: [stages.adapt.consistncy=0, seed=3]\n"
        "  y:\n    - stages.refit\n    - stages.refit.ridge=-1\n"
    )
    assert errors(tmp_path, text, "stages.measure.rounds=3") == [
        "a.yaml:4: seed is the same for all variants: give it on the command line",
        "a.yaml:4: stages.adapt: unknown key 'consistncy': did you mean consistency? known: "
        "bilevel, consistency, cycle, gate, label, label_strength, labeler, lower_rate, "
        "mean_teacher, mode, prior, rank, replay, retain, statistics, training, update",
        "a.yaml:6: must be KEY=VALUE, such as stages.allocate.keep_macs=0.2",
        "a.yaml:7: stages.refit.ridge: must be at least 0.0, got -1",
        "--set stages.measure.rounds=3: unknown key 'rounds': did you mean latency_rounds? "
        "known: latency_rounds",
    ]


def test_a_variant_without_effect_is_an_error(tmp_path):
    text = f"{ABLATION}  same: [stages.distill.feature=0.10]\n  again: [stages.adapt=off]\n"
    assert errors(tmp_path, text) == [
        "a.yaml:13: variant 'same' is the same as 'full': change something, or remove it",
        "a.yaml:14: variant 'again' is the same as 'core': change something, or remove it",
    ]
    assert len(load_ablation(put(tmp_path, text), only=["core"]).variants) == 2


def test_names_that_nothing_has_are_errors(tmp_path):
    assert errors(tmp_path, ABLATION.replace("measures", "reference: ful\nmeasures"))[0] == (
        "a.yaml:2: reference: no variant 'ful': did you mean full? known: auxiliary, core, full"
    )
    assert errors(tmp_path, ABLATION, only=["cor"]) == [
        "--only cor: no such variant: did you mean core? known: auxiliary, core, full"
    ]
    assert errors(tmp_path, "recipe: no.yaml\nvariants: {full: }") == [
        "no recipe file no.yaml: give the path of a YAML file"
    ]


def test_overrides_of_the_command_line_win_over_the_files_and_variants_over_them(tmp_path):
    given_ = ["stages.distill.feature=0.3", "stages.adapt.consistency=2.0"]
    ablation = load_ablation(put(tmp_path), given_)
    full, core, auxiliary = (variant.recipe for variant in ablation.variants)

    assert full.stages["distill"].feature == core.stages["distill"].feature == 0.3
    assert full.stages["adapt"].consistency == auxiliary.stages["adapt"].consistency == 2.0
    assert "adapt" not in core.stages
    assert ablation.out == "runs/ablation"


def test_the_command_prints_json_or_tables_and_refuses_no_seeds(tmp_path, call):
    file = put(tmp_path)
    out = ["--out", tmp_path / "out", "--seeds", "1", "--only", "auxiliary"]
    short = ["--set", "stages.adapt.training.steps=1", "stages.distill.training.steps=1"]

    said = call("ablate", file, "--json", *out, *short)
    again = call("ablate", file, *out, *short)

    assert said.code == again.code == 0, said.err
    document = json.loads(said.out)
    assert [row["variant"] for row in document["rows"]] == ["full", "auxiliary"]
    assert document["settings"][-1] == "stages.distill.training.steps=1"
    assert all(change["verdict"] == "one seed" for change in document["differences"])
    assert again.err.count("done before") == 7 + 2
    assert again.out.splitlines()[-1] == f"tables: {tmp_path / 'out/ablation.md'}"
    refused = call("ablate", file, "--seeds", "0")
    assert (refused.code, refused.err) == (2, "error: --seeds must be at least 1, got 0\n")


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=5), st.floats(-5, 5))
def test_a_shift_that_is_the_same_for_all_seeds_has_no_spread(values, shift):
    ours = {seed: value + shift for seed, value in enumerate(values)}
    change = difference(ours, dict(enumerate(values)))

    assert change.mean == pytest.approx(shift, abs=1e-9)
    assert change.deviation == pytest.approx(0.0, abs=1e-9)
    assert difference(ours, {99: 1.0}) is None


@pytest.mark.parametrize(
    ("mean", "deviation", "better", "expected"),
    [
        (0.5, 0.1, "higher", "better"),
        (0.5, 0.1, "lower", "worse"),
        (-0.5, 0.1, "lower", "better"),
        (0.5, 0.1, None, "differs"),
        (0.5, 0.5, "higher", "within the spread"),
        (0.0, 0.0, "higher", "within the spread"),
        (0.5, None, "higher", "one seed"),
    ],
)
def test_a_difference_counts_above_its_spread(mean, deviation, better, expected):
    assert verdict(Spread(mean=mean, deviation=deviation, n=3), better) == expected

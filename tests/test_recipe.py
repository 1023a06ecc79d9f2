"""Recipes: what is read, and what is refused with which line."""

import dataclasses
from typing import Any

import pytest
from toy_recipes import GOOD, TOYS, Allocate, Distill, Score, Toy, Training, errors, parse

from coa_compress.errors import CoaError, RecipeError, RegistryError, SettingError
from coa_compress.recipe.files import load_recipe, parse_recipe
from coa_compress.recipe.schema import Recipe, StructureChoice, TaskChoice
from coa_compress.registry import Registry


def test_what_is_not_written_has_its_default():
    recipe = parse(GOOD)

    assert recipe == Recipe(
        name="small",
        task=TaskChoice(name="toy", settings=Toy.Settings()),
        stages={"allocate": Allocate.Settings(keep_macs=0.25)},
    )
    assert (recipe.seed, recipe.device, recipe.out) == (0, "auto", "runs/small")
    assert recipe.structure == StructureChoice(include=(), exclude=())


def test_only_named_stages_run_and_in_the_order_of_the_data():
    recipe = parse("name: x\ntask: toy\nstages: {distill: , score: {}}")

    assert list(recipe.stages) == ["score", "distill"]
    assert recipe.stages == {"score": Score.Settings(), "distill": Distill.Settings()}


def test_a_stage_keeps_its_own_defaults_of_shared_settings():
    recipe = parse(GOOD, "stages.distill.final.steps=6")

    assert recipe.stages["distill"].final == Training(steps=6, lr=0.5)
    assert parse(GOOD, "stages.distill.final=null").stages["distill"].final is None
    assert parse(GOOD, "stages.distill.training.steps=6").stages["distill"].final == Training(
        steps=5, lr=0.5
    )


@pytest.mark.parametrize("word", ["off", "false"])
def test_a_stage_can_be_off(word):
    recipe = parse(GOOD + f"  distill: {word}\n")

    assert list(recipe.stages) == ["allocate"]


def test_nested_values_are_made():
    stages = """\
  distill:
    training: {steps: 7, lr: 1e-2, schedule: constant}
    warm: {steps: 1}
    phases: [{steps: 2}, {}]
    by_name: {a.b: {steps: 3}}
    weights: {l1: 1, feature.1: 5E-1}
    taps: ['1', no, on, ~a, 12:30, 2020-01-01, 1_000, 0o17]
    size: [1, 2]
    mix: .5
"""
    made = parse(GOOD + stages).stages["distill"]

    assert made == Distill.Settings(
        training=Training(steps=7, lr=0.01, schedule="constant"),
        warm=Training(steps=1),
        phases=(Training(steps=2), Training()),
        by_name={"a.b": Training(steps=3)},
        weights={"l1": 1.0, "feature.1": 0.5},
        taps=("1", "no", "on", "~a", "12:30", "2020-01-01", "1_000", "0o17"),
        size=(1, 2),
        mix=0.5,
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  score: {scorer: 3}", "stages.score.scorer: must be text, got 3"),
        ("  score: {normalize: yes}", "stages.score.normalize: must be true or false, got 'yes'"),
        ("  score: [1]", "stages.score: must be keys and values, got a list of 1"),
        (
            "  score: {scorr: l1}",
            "stages.score: unknown key 'scorr': did you mean scorer? known: normalize, scorer",
        ),
        (
            "  scor: {}",
            "stages: unknown stage 'scor': did you mean score? known: allocate, distill, score",
        ),
        (
            "  distill: {training: {steps: 1.5}}",
            "stages.distill.training.steps: must be a whole number, got 1.5",
        ),
        (
            "  distill: {training: {steps: 0}}",
            "stages.distill.training.steps: must be at least 1, got 0",
        ),
        (
            "  distill: {training: {lr: '3'}}",
            "stages.distill.training.lr: must be a number, got '3'",
        ),
        (
            "  distill: {training: {lr: true}}",
            "stages.distill.training.lr: must be a number, got true",
        ),
        (
            "  distill: {training: {lr: .nan}}",
            "stages.distill.training.lr: must be at least 0.0, got NaN",
        ),
        (
            "  distill: {training: {schedule: cosin}}",
            "stages.distill.training.schedule: unknown value 'cosin': "
            "did you mean cosine? known: constant, cosine",
        ),
        (
            "  distill: {training: {schedule: 1}}",
            "stages.distill.training.schedule: must be 'cosine' or 'constant', got 1",
        ),
        ("  distill: {mix: x}", "stages.distill.mix: must be a number or 'auto', got 'x'"),
        ("  distill: {taps: a}", "stages.distill.taps: must be a list, got 'a'"),
        ("  distill: {taps: [a, 1]}", "stages.distill.taps[1]: must be text, got 1"),
        ("  distill: {weights: {l1: a}}", "stages.distill.weights.l1: must be a number, got 'a'"),
        ("  distill: {weights: 1}", "stages.distill.weights: must be keys and values, got 1"),
        ("  distill: {phases: 1}", "stages.distill.phases: must be a list, got 1"),
        ("  distill: {by_name: 1}", "stages.distill.by_name: must be keys and values, got 1"),
        (
            "  distill: {phases: [{steps: 0}]}",
            "stages.distill.phases[0].steps: must be at least 1, got 0",
        ),
        (
            "  distill: {by_name: {a: {stps: 1}}}",
            "stages.distill.by_name.a: unknown key 'stps': "
            "did you mean steps? known: lr, schedule, steps",
        ),
        ("  distill: {size: [1]}", "stages.distill.size: must be a list of 2, got a list of 1"),
        (
            "  distill: {size: [1, 2, 3]}",
            "stages.distill.size: must be a list of at most 2, got a list of 3",
        ),
        (
            "  distill: {odd: [1, 2, 3]}",
            "stages.distill.odd: must be a list of at most 2, got a list of 3",
        ),
    ],
)
def test_each_mistake_has_its_line(line, expected):
    assert errors(GOOD + line) == [f"r.yaml:6: {expected}"]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("seed: -1", "seed: must be at least 0, got -1"),
        ("seed: 4294967296", "seed: must be below 4294967296, got 4294967296"),
        ("device: gpu", "device: must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("out: 3", "out: must be text, got 3"),
        ("structure: {exclude: head}", "structure.exclude: must be a list, got 'head'"),
        ("keep_macs: 0.2", "unknown key 'keep_macs': did you mean stages.allocate.keep_macs?"),
        ("distill: {}", "unknown key 'distill': did you mean stages.distill?"),
        ("sed: 1", "unknown key 'sed': did you mean seed? known: "),
        ("? [a]\n: 1", "a key must be a plain word"),
    ],
)
def test_each_mistake_at_the_top_has_its_line(head, expected):
    (line,) = errors(f"{head}\n{GOOD}")

    assert line.startswith(f"r.yaml:1: {expected}")


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("toyy", "task.name: unknown task 'toyy': did you mean toy? known: needy, toy"),
        ("{name: 3}", "task.name: unknown task 3: known: needy, toy"),
        ("{train: a}", "task.name: is missing: known: needy, toy"),
        ("", "task.name: is missing: known: needy, toy"),
        ("[toy]", "task.name: is missing: known: needy, toy"),
        ("{name: toy, crop: 0}", "task.crop: must be at least 1, got 0"),
        ("{name: toy, croq: 1}", "task: unknown key 'croq': did you mean crop? known: "),
        ("{name: toy, train: 1}", "task.train: must be text or a list, got 1"),
        ("needy", "task.folder: is missing: give a value"),
    ],
)
def test_each_mistake_in_the_task_has_its_line(task, expected):
    (line,) = errors(f"name: x\ntask: {task}\nstages: {{score: }}")

    assert line.startswith(f"r.yaml:2: {expected}")


def test_two_keys_in_conflict_are_reported_where_they_are():
    lines = errors("name: x\ntask: toy\nstages:\n  allocate:\n    round_to: 4\n")

    assert lines == [
        "r.yaml:4: stages.allocate: no budget given: set keep_macs or keep_params",
    ]


def test_every_mistake_is_reported_at_once_in_the_order_of_the_file():
    text = "nme: x\nseed: a\nseed: 1\ntask: {name: toyx}\nstages:\n  allocate: {keep_macs: 2}\n"

    lines = errors(text, "device=x", "stages.score.y=1")

    assert [line.split(": ")[0] for line in lines] == [
        "r.yaml:1",
        "r.yaml:1",
        "r.yaml:2",
        "r.yaml:3",
        "r.yaml:4",
        "r.yaml:6",
        "--set device=x",
        "--set stages.score.y=1",
    ]
    assert lines[3] == "r.yaml:3: key 'seed' is given twice, first at r.yaml:2: remove one"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "r.yaml:1:8: not valid YAML: "),
        ("a: 1\nb: c: d\n", "r.yaml:2:5: not valid YAML: mapping values are not allowed here"),
        ("a:\n\t- b", "r.yaml:2:1: not valid YAML: "),
        ("a: 1\x00", "r.yaml:1:5: character "),
        ("a: &x 1", "r.yaml:1:4: anchors and aliases (& and *) are not allowed"),
        ("a: *x", "r.yaml:1:4: anchors and aliases (& and *) are not allowed"),
        ("a: !!python/object:os.system 1", "r.yaml:1:4: the tag 'tag:yaml.org,2002:python/object"),
        ("a: !x 1", "r.yaml:1:4: the tag '!x' is not allowed"),
        ("a: 1\n---\nb: 2", "r.yaml:2:1: not valid YAML: but found another document"),
        ("[" * 2000, "r.yaml: brackets are nested too deep"),
        ("- a", "r.yaml:1: a recipe must be keys and values, got a list of 1"),
        ("hello", "r.yaml:1: a recipe must be keys and values, got 'hello'"),
    ],
)
def test_what_is_not_a_recipe_at_all_is_one_line(text, expected):
    (line,) = errors(text)

    assert line.startswith(expected)


def test_an_empty_file_names_what_is_missing():
    assert [line.split(": ")[1] for line in errors("")] == ["name", "stages", "task.name"]


@pytest.mark.parametrize("stages", ["{}", "{score: off}"])
def test_no_stage_is_an_error(stages):
    assert errors(f"name: x\ntask: toy\nstages: {stages}") == [
        "r.yaml:3: stages: every stage is off: known: score, allocate, distill"
    ]


@pytest.mark.parametrize("make", ["nothing", "folder", "latin", "utf16"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, make):
    path = tmp_path / "r.yaml"
    if make == "folder":
        path.mkdir()
    elif make != "nothing":
        path.write_bytes("name: café".encode({"latin": "latin-1", "utf16": "utf-16"}[make]))
    expected = {
        "nothing": "no recipe file .*r.yaml: give the path",
        "folder": "r.yaml is a folder: give the path",
        "latin": r"r.yaml is not UTF-8 text \(byte 9\): save it as UTF-8",
        "utf16": r"r.yaml is not UTF-8 text \(byte 0\): save it as UTF-8",
    }

    with pytest.raises(RecipeError, match=expected[make]):
        load_recipe(path, schema=TOYS)


def test_a_file_is_read_with_its_name_in_the_messages(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("\ufeff" + GOOD, encoding="utf-8")

    assert load_recipe(path, schema=TOYS) == parse(GOOD)
    with pytest.raises(RecipeError, match=r"--set seed=x: must be a whole number, got 'x'"):
        load_recipe(str(path), ["seed=x"], schema=TOYS)
    path.write_bytes(b"seed: x\r\n" + GOOD.encode())
    with pytest.raises(RecipeError, match=r"r\.yaml:1: seed: must be a whole number, got 'x'"):
        load_recipe(path, schema=TOYS)


def test_a_plug_in_that_does_not_load_is_one_line():
    class Broken(Registry[Any]):
        def get(self, name):
            message = "No module named 'lost'"
            raise ModuleNotFoundError(message)

    tasks = Broken("task", group="coa_compress.no_such_group")
    tasks.register("toy")(Toy)
    schema = dataclasses.replace(TOYS, tasks=tasks)

    with pytest.raises(RecipeError, match=r"r\.yaml:2: task\.name: task 'toy' cannot be loaded: "):
        parse_recipe(GOOD, source="r.yaml", schema=schema)
    with pytest.raises(RegistryError, match="No module named 'lost'"):
        schema.task_class("toy")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"name": "../x"}, RecipeError, "name must be letters"),
        ({"device": "gpu"}, RecipeError, "device must be auto"),
        ({"seed": -1}, SettingError, "seed must be at least 0"),
    ],
)
def test_a_recipe_made_in_python_is_checked_too(change, error, match):
    with pytest.raises(error, match=match):
        dataclasses.replace(parse(GOOD), **change)


def test_a_recipe_error_is_ours_and_a_value_error():
    assert issubclass(RecipeError, CoaError)
    assert issubclass(RecipeError, ValueError)

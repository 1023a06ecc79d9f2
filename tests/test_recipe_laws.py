"""Recipes: overrides win, writing loses nothing, and no text is worse than an error."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_recipes import GOOD, TOYS, Allocate, Distill, Score, Toy, Training, errors, parse

from coa_compress.errors import RecipeError
from coa_compress.recipe.document import parse_document, write_document
from coa_compress.recipe.files import (
    SCHEMA,
    default_recipe,
    dump_recipe,
    load_recipe,
    parse_recipe,
    recipe_digest,
)
from coa_compress.recipe.schema import Recipe, StructureChoice, TaskChoice


def test_overrides_replace_add_and_remove():
    recipe = parse(
        GOOD,
        "stages.allocate.keep_macs=0.5",
        "stages.score.scorer=l1",
        "stages.distill={taps: [a]}",
        "stages.distill.training.steps=3",
        "stages.distill.training.lr=1e-4",
        "task.train=dir1,dir2",
        "seed=1",
        "seed=2",
    )

    assert recipe.seed == 2
    assert recipe.task.settings == Toy.Settings(train="dir1,dir2")
    assert recipe.stages == {
        "score": Score.Settings(scorer="l1"),
        "allocate": Allocate.Settings(keep_macs=0.5),
        "distill": Distill.Settings(taps=("a",), training=Training(steps=3, lr=1e-4)),
    }


@pytest.mark.parametrize("value", ["off", "false", "null", ""])
def test_an_override_takes_a_stage_out(value):
    recipe = parse(GOOD + "  score: {}\n", f"stages.score={value}")

    assert list(recipe.stages) == ["allocate"]


@pytest.mark.parametrize("value", ["on", "true", "{}"])
def test_an_override_adds_a_stage_with_its_defaults(value):
    recipe = parse(GOOD, f"stages.score={value}")

    assert recipe.stages["score"] == Score.Settings()


def test_an_override_of_the_task_word_keeps_the_task():
    recipe = parse("name: x\ntask: toy\nstages: {score: on}", "task.crop=8")

    assert recipe.task == TaskChoice(name="toy", settings=Toy.Settings(crop=8))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "must be KEY=VALUE, such as stages.allocate.keep_macs=0.2"),
        ("=1", "must be KEY=VALUE, such as stages.allocate.keep_macs=0.2"),
        ("a..b=1", "must be KEY=VALUE, such as stages.allocate.keep_macs=0.2"),
        ("seed=-1", "must be at least 0, got -1"),
        ("seed.x=1", "must be a whole number, got keys and values"),
        ("name.x=1", "name is 'small', which has no keys"),
        ("keep_macs=0.1", "unknown key 'keep_macs': did you mean stages.allocate.keep_macs?"),
        ("stages.allocate.keep_mac=0.1", "unknown key 'keep_mac': did you mean keep_macs? known: "),
        ("stages.allocate.keep_macs=1.5", "must be at most 1.0, got 1.5"),
        ("stages.allocats.keep_macs=1", "unknown stage 'allocats': did you mean allocate?"),
        ("stages.allocats=off", "unknown stage 'allocats': did you mean allocate?"),
        ("out=[a", "not valid YAML: "),
        ("out=*a", "anchors and aliases (& and *) are not allowed: write the value, or quote it"),
        ("stages.distill.weights={a: 1, a: 2}", "key 'a' is given twice"),
    ],
)
def test_each_wrong_override_is_named(override, expected):
    (line,) = errors(GOOD, override)

    assert line.startswith(f"--set {override}: {expected}")


TEXTS = st.text(max_size=12) | st.sampled_from(
    ["off", "1e-3", "null", "\x85", "a\u2028b", "~", "1", "", "a: b", "#"]
)
FLOATS = st.floats(allow_nan=False)
TRAININGS = st.builds(
    Training,
    steps=st.integers(1, 10**12),
    lr=st.floats(0, 1e300),
    schedule=st.sampled_from(["cosine", "constant"]),
)
DISTILLS = st.builds(
    Distill.Settings,
    training=TRAININGS,
    warm=st.none() | TRAININGS,
    weights=st.dictionaries(TEXTS, FLOATS, max_size=3),
    phases=st.lists(TRAININGS, max_size=2).map(tuple),
    by_name=st.dictionaries(TEXTS, TRAININGS, max_size=2),
    taps=st.lists(TEXTS, max_size=3).map(tuple),
    mix=st.just("auto") | FLOATS,
)
RECIPES = st.builds(
    Recipe,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True),
    seed=st.integers(0, 2**32 - 1),
    device=st.sampled_from(["auto", "cpu", "cuda", "cuda:1"]),
    out=TEXTS,
    task=st.builds(
        TaskChoice,
        name=st.just("toy"),
        settings=st.builds(
            Toy.Settings, train=TEXTS | st.lists(TEXTS).map(tuple), crop=st.integers(1, 99)
        ),
    ),
    structure=st.builds(StructureChoice, include=st.lists(TEXTS, max_size=2).map(tuple)),
    stages=st.fixed_dictionaries(
        {"allocate": st.builds(Allocate.Settings, keep_macs=st.floats(0.01, 1.0))},
        optional={"distill": DISTILLS},
    ).map(TOYS.in_order),
)


@settings(deadline=None, max_examples=60)
@given(recipe=RECIPES)
def test_a_written_recipe_reads_back_the_same(recipe):
    text = dump_recipe(recipe)

    again = parse(text)

    assert again == recipe
    assert dump_recipe(again) == text
    assert recipe_digest(again) == recipe_digest(recipe)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(value=PLAIN)
def test_plain_values_survive_yaml(value):
    root, problems = parse_document(write_document(value), source="r.yaml")

    assert problems == []
    assert root.plain() == value


@settings(deadline=None, max_examples=60)
@given(text=st.text(max_size=40) | st.text("a:-[]{}#'\"&*!|>% \n\t?,", max_size=20))
def test_any_text_is_a_recipe_or_a_recipe_error(text):
    try:
        parse(text)
    except RecipeError as error:
        assert str(error)  # noqa: PT017 - no recipe is a fine answer too


@settings(deadline=None, max_examples=60)
@given(override=st.text("abst.=[]{}#'&*: ", max_size=20))
def test_any_override_is_used_or_a_recipe_error(override):
    try:
        parse(GOOD, override)
    except RecipeError as error:
        assert "--set " in str(error)  # noqa: PT017 - no error is a fine answer too


def test_every_default_is_written():
    text = dump_recipe(parse(GOOD))

    assert text == (
        "name: small\nmodel: ''\nweights: ''\nseed: 0\ndevice: auto\nout: runs/small\n"
        "task:\n  name: toy\n  train: builtin\n  crop: 32\n"
        "structure:\n  include: []\n  exclude: []\n  mode: auto\n  outputs: []\n"
        "stages:\n  allocate:\n    keep_macs: 0.25\n    keep_params: null\n    round_to: 8\n"
    )


def test_the_digest_follows_what_decides_the_result():
    recipe = parse(GOOD, "stages.distill=on")
    digest = recipe_digest(recipe)

    for same in ({"name": "b"}, {"device": "cpu"}, {"out": "x"}):
        assert recipe_digest(dataclasses.replace(recipe, **same)) == digest
    assert recipe_digest(dataclasses.replace(recipe, seed=1)) != digest
    assert recipe_digest(parse(GOOD)) != digest
    assert recipe_digest(parse(GOOD), until="allocate") == recipe_digest(recipe, until="allocate")
    assert recipe_digest(recipe, until="distill") == digest


real_stages = pytest.mark.skipif(not SCHEMA.stages, reason="no stages")


@real_stages
def test_the_default_recipe_needs_no_file():
    recipe = default_recipe()

    assert recipe.task.name == "restoration"
    assert parse_recipe(dump_recipe(recipe), source="default") == recipe


@real_stages
@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "recipes").glob("*[!n].yaml")))
def test_every_recipe_of_the_project_is_good(path):
    recipe = load_recipe(path)

    assert recipe.name == path.stem
    assert parse_recipe(dump_recipe(recipe), source=path.name) == recipe

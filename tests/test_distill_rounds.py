"""Facts about cutting and distilling in several rounds, and about students that teach."""

import json

import pytest
import torch
from small_runs import Plain, files_in, same_snapshot, seeded, small_recipe, snapshot
from zoo import literal_slice

import coa_compress
from coa_compress.compressor import Compressor
from coa_compress.errors import RecipeError, SettingError
from coa_compress.recipe.assembly import plain, plain_recipe
from coa_compress.runs import RunFolder, digest_of
from coa_compress.stages import distill as distilling
from coa_compress.stages.allocate import Allocate, AllocateSettings
from coa_compress.stages.distill import Distill, DistillSettings
from coa_compress.stages.measure import Measure, MeasureSettings
from coa_compress.stages.order import decisive_settings, in_rounds
from coa_compress.stages.score import Score, ScoreSettings
from coa_compress.training.settings import TrainingSettings

ROUNDS = {
    "stages__distill__rounds": 3,
    "stages__distill__round_steps": 2,
    "stages__distill__training__checkpoint_every": 1,
    "stages__allocate__keep_macs": 0.25,
}
ONE_ROUND = ["score", "allocate", "prune", "refit", "distill"]


def teacher():
    return seeded(lambda: Plain(16)).eval()


def job(folder, *, observer=None, **overrides):
    recipe = small_recipe(**{**ROUNDS, **overrides})
    return Compressor(teacher(), recipe=recipe, out=folder, observer=observer)


def weights_in(folder):
    return {n: b for n, b in files_in(folder).items() if n.endswith(".safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three rounds: its folder and its result."""
    folder = tmp_path_factory.mktemp("rounds") / "run"
    return folder, job(folder).run()


class Heard:
    """An observer that can stop a run in the middle of a stage."""

    def __init__(self, stop_at=None):
        self.stop_at, self.stage, self.done_before, self.steps = stop_at, "", [], {}

    def on_stage_start(self, stage, detail):
        self.stage = stage
        if detail == "done before":
            self.done_before.append(stage)

    def on_stage_end(self, stage, seconds, detail):
        pass

    def on_progress(self, done, total, values):
        self.steps.setdefault(self.stage, []).append(done)
        if (self.stage, done) == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def teachers(monkeypatch):
    """Every network that taught, in order, with what it says of an image."""
    seen = []

    class Spied(distilling.Objective):
        def __init__(self, **settings):
            super().__init__(**settings)
            seen.append(settings["teacher"])

    monkeypatch.setattr(distilling, "Objective", Spied)
    return seen


def test_the_budget_is_met_and_reported_as_in_one_round(finished):
    _, result = finished

    measured, allocation = result.report.measurements, result.report.allocation
    assert measured["student"]["macs"] <= 0.25 * measured["teacher"]["macs"]
    assert allocation["macs_kept"] == measured["student"]["macs"] / measured["teacher"]["macs"]
    assert allocation["budget"]["keep_macs"] == 0.25
    for group in allocation["groups"]:
        assert group["teacher_width"] == 16
        assert group["student_width"] == len(result.record.kept[group["name"]]) < 16


def test_each_round_has_its_stages_and_keeps_a_part_of_the_one_before(finished):
    folder, result = finished

    names = [f"{name}{ending}" for ending in ("", "-2", "-3") for name in ONE_ROUND]
    assert list(result.report.stage_seconds) == [*names, "measure"]
    assert list(result.report.histories) == ["distill", "distill-2", "distill-3"]
    assert [h.steps[-1] for h in result.report.histories.values()] == [2, 2, 4]
    found = [
        json.loads((folder / place / "allocation.json").read_text())
        for place in ("01_allocate", "06_allocate-2", "11_allocate-3")
    ]
    for number, one in enumerate(found, start=1):
        assert one["macs"] <= 0.25 ** (number / 3) * one["teacher_macs"]
    assert found[0]["macs"] > found[1]["macs"] > found[2]["macs"]
    assert len({one["teacher_macs"] for one in found}) == 1


def test_the_teacher_is_unchanged_and_the_student_opens_from_it(tmp_path):
    model = teacher()
    before = snapshot(model)

    result = Compressor(model, recipe=small_recipe(**ROUNDS), out=tmp_path / "run").run()

    assert same_snapshot(before, snapshot(model))
    assert same_snapshot(before, snapshot(result.teacher))
    image = torch.rand(1, 3, 16, 16)
    opened = coa_compress.load(tmp_path / "run" / "student", model=teacher())
    assert torch.equal(opened(image), result.student(image))


def test_a_student_that_runs_a_graph_goes_through_rounds_too(tmp_path):
    model = seeded(literal_slice.build).eval()
    recipe = small_recipe(**ROUNDS, structure__mode="graph", stages__distill__assistant="true")

    result = Compressor(model, recipe=recipe, out=tmp_path / "run", example=image()).run()

    opened = coa_compress.load(tmp_path / "run" / "student", model=seeded(literal_slice.build))
    assert torch.equal(opened(image()), result.student(image()))


def image():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("moment", [("distill-2", 1), ("refit-2", 1), ("distill-3", 3)])
def test_a_run_stopped_in_a_later_round_ends_with_the_same_bits(tmp_path, finished, moment):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        job(folder, observer=Heard(stop_at=moment)).run()

    heard = Heard()
    job(folder, observer=heard).run()

    assert weights_in(folder) == weights_in(finished[0])
    assert heard.done_before[:5] == ONE_ROUND
    assert moment[0] not in heard.done_before
    if moment[0].startswith("distill"):
        assert heard.steps[moment[0]][0] == moment[1] + 1


def test_rounds_that_are_done_are_not_done_again(tmp_path, finished):
    cache = tmp_path / "cache"
    job(tmp_path / "one").run(cache=cache)

    again, longer = Heard(), Heard()
    job(tmp_path / "two", observer=again).run(cache=cache)
    job(tmp_path / "three", observer=longer, stages__distill__training__steps=5).run(cache=cache)

    assert len(again.done_before) == 16
    assert longer.done_before == again.done_before[:14]  # up to the last distillation
    assert weights_in(tmp_path / "two") == weights_in(finished[0])


def test_the_first_round_is_that_of_a_run_with_the_budget_of_that_round(tmp_path, finished):
    folder, _ = finished
    alone = job(
        tmp_path / "run",
        stages__distill__rounds=1,
        stages__distill__round_steps="null",
        stages__distill__training__steps=2,
        stages__allocate__keep_macs=0.25 ** (1 / 3),
    )
    alone.run()

    for place, name in enumerate(ONE_ROUND):
        stage = f"{place:02d}_{name}"
        assert RunFolder(folder).digest(stage) == RunFolder(tmp_path / "run").digest(stage)


def test_one_round_is_identified_as_it_was_before_there_were_rounds():
    settings = plain(DistillSettings())

    left = decisive_settings(Distill(DistillSettings()), settings)

    assert set(settings) - set(left) == {"rounds", "round_steps", "assistant"}
    # a stage that was finished before there were rounds is found again by these
    assert list(left) == [
        *("training", "truth", "teacher", "feature", "contrastive", "taps", "tap_choice"),
        *("adapters", "balance", "branches"),
    ]
    other = plain_recipe(small_recipe())["stages"]["allocate"]
    assert decisive_settings(Allocate(AllocateSettings(keep_macs=0.5)), other) == other


def test_without_an_assistant_the_teacher_teaches_every_round(tmp_path, teachers):
    job(tmp_path / "run").run()

    assert [type(one) for one in teachers] == [Plain] * 3
    for one in teachers:
        assert torch.equal(one(image()), teacher()(image()))


def test_with_an_assistant_the_student_of_a_round_teaches_the_next(tmp_path, teachers):
    folder = tmp_path / "run"
    job(
        folder, stages__distill__assistant="true", stages__distill__tap_choice="expected_loss"
    ).run()

    assert len(teachers) == 3
    assert torch.equal(teachers[0](image()), teacher()(image()))
    for one, place in zip(teachers[1:], ("04_distill", "09_distill-2"), strict=True):
        saved = coa_compress.checkpoint.load_tensors(folder / place / "student.safetensors")
        state = one.state_dict()
        assert state.keys() == saved.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())


def test_an_assistant_changes_the_student_and_shares_the_first_round(tmp_path, finished):
    folder, plainly = finished

    result = job(tmp_path / "run", stages__distill__assistant="true").run()

    assert result.report.allocation["macs_kept"] <= 0.25
    assert not torch.equal(result.student(image()), plainly.student(image()))
    digests = [[RunFolder(f).digest(place) for f in (folder, tmp_path / "run")] for place in PLACES]
    assert [one == other for one, other in digests] == [True, True, False]


PLACES = ("04_distill", "08_refit-2", "09_distill-2")


def test_a_round_whose_budget_is_met_already_cuts_nothing_more(tmp_path):
    with pytest.warns(UserWarning, match="has no effect|nothing was removed"):
        result = job(
            tmp_path / "run",
            stages__allocate__keep_macs=0.97,
            stages__allocate__round_to=8,
            stages__distill__assistant="true",
        ).run()

    measured = result.report.measurements
    assert measured["student"]["macs"] <= 0.97 * measured["teacher"]["macs"]


def test_the_plan_says_what_each_round_keeps_and_who_teaches(tmp_path):
    lines = job(tmp_path / "run", stages__distill__assistant="true").plan().splitlines()

    assert not (tmp_path / "run").exists()
    macs = next(line for line in lines if line.startswith("macs"))
    rounds = next(line for line in lines if line.startswith("rounds"))
    kept = [float(part.strip(" %")) for part in rounds[11:].split(" of ")[0].split(",")]
    assert len(kept) == 3
    assert all(part <= 100 * 0.25 ** (n / 3) for n, part in enumerate(kept, start=1))
    assert macs.endswith(f" {kept[-1]}%")
    assert lines[-2] == (
        "taught  2 steps by the teacher, 2 steps by the student before, 4 steps by the student "
        "before"
    )
    assert lines[-1].endswith("refit-3 -> distill-3 -> measure")


def test_later_rounds_measure_no_curves_and_the_last_one_has_the_budget_itself():
    training = TrainingSettings(steps=9)
    stages = in_rounds(
        [
            Score(ScoreSettings(curves=3)),
            Allocate(AllocateSettings(keep_macs=0.09, keep_params=0.3)),
            Distill(DistillSettings(rounds=2, assistant=True, training=training)),
            Measure(MeasureSettings()),
        ]
    )

    names = ["score", "allocate", "distill", "score-2", "allocate-2", "distill-2", "measure"]
    assert [stage.name for stage in stages] == names
    assert [stages[i].settings.curves for i in (0, 3)] == [3, 0]
    assert [stages[i].settings.keep_macs for i in (1, 4)] == [pytest.approx(0.3), 0.09]
    assert [stages[i].settings.keep_params for i in (1, 4)] == [0.3**0.5, 0.3]
    assert [stages[i].settings.training.steps for i in (2, 5)] == [9, 9]
    assert [stages[i].settings.assistant for i in (2, 5)] == [False, True]


def test_curves_and_params_go_through_rounds(tmp_path):
    result = job(
        tmp_path / "run",
        stages__score__curves=2,
        stages__allocate__keep_macs="null",
        stages__allocate__keep_params=0.3,
        stages__distill__branches="true",
    ).run()

    measured = result.report.measurements
    assert measured["student"]["params"] <= 0.3 * measured["teacher"]["params"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounds": 0}, "DistillSettings.rounds must be at least 1, got 0"),
        ({"rounds": 17}, "DistillSettings.rounds must be at most 16, got 17"),
        ({"rounds": 2, "round_steps": 0}, "DistillSettings.round_steps must be at least 1, got 0"),
        (
            {"assistant": True},
            "DistillSettings.assistant needs a round before the last, and rounds is 1: set rounds "
            "to 2 or more, or leave assistant out",
        ),
        (
            {"round_steps": 5},
            "DistillSettings.round_steps needs a round before the last, and rounds is 1: set "
            "rounds to 2 or more, or leave round_steps out",
        ),
    ],
)
def test_settings_of_rounds_that_cannot_be_are_errors(settings, said):
    with pytest.raises(SettingError) as caught:
        DistillSettings(**settings)

    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"rounds": 0}, "stages.distill.rounds=0: must be at least 1, got 0"),
        ({"rounds": "many"}, "must be a whole number, got 'many'"),
        ({"assistant": "true"}, "assistant needs a round before the last"),
        ({"round_steps": 5}, "round_steps needs a round before the last"),
        ({"round": 2}, "unknown key 'round': did you mean rounds"),
        ({"assistants": "true"}, "unknown key 'assistants': did you mean assistant"),
    ],
)
def test_a_recipe_with_wrong_rounds_says_so(override, said):
    with pytest.raises(RecipeError) as caught:
        small_recipe(**{f"stages__distill__{name}": value for name, value in override.items()})

    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            {"stages__allocate__keep_latency": 0.5},
            "stages.distill.rounds is 3, but latency and memory are limited in one round: use "
            "keep_macs or keep_params, or rounds: 1",
        ),
        (
            {"stages__allocate__rounds": 2},
            "stages.distill.rounds is 3, but stages.allocate.rounds is 2: set one of them to 1",
        ),
        ({"stages__prune": "off"}, "stage 'refit' needs stage 'prune': add it to the recipe"),
    ],
)
def test_rounds_that_cannot_be_run_are_refused_before_anything_is_written(tmp_path, override, said):
    for work in ("check", "plan", "run"):
        with pytest.raises(RecipeError) as caught:
            getattr(job(tmp_path / "run", **override), work)()
        assert str(caught.value) == said

    assert not (tmp_path / "run").exists()


def test_digests_tell_rounds_apart():
    settings = DistillSettings(rounds=2, assistant=True)
    first, second = in_rounds([Distill(settings)])

    left = [decisive_settings(one, plain(one.settings)) for one in (first, second)]

    assert "assistant" not in left[0]
    assert left[1]["assistant"] is True
    assert digest_of(first.name, left[0]) != digest_of(second.name, left[1])

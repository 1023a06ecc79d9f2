"""A run that is stopped goes on, and ends as if nothing had happened."""

import re
import shutil
import signal
import subprocess

import pytest
import torch
from small_runs import command, environment, files_in, in_subprocess

from coa_compress.runs import open_run

STAGES = ["score", "allocate", "prune", "refit", "distill", "adapt", "measure"]
KILLS = [
    ("distill 50% (4/8)", signal.SIGKILL),
    ("✓ distill", signal.SIGKILL),
    ("adapt 50% (3/6)", signal.SIGINT),
]


@pytest.fixture
def run_copy(whole_run, tmp_path):
    """A finished run that may be changed."""
    return shutil.copytree(whole_run.folder, tmp_path / "run")


@pytest.fixture
def one_thread():
    """Compute the bits that the other process computed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stopped_at(moment, how, *arguments, cwd):
    """Return the exit code and the lines of a command that is stopped once it has said a thing."""
    with subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env={**environment(), "PYTHONIOENCODING": "utf-8"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        encoding="utf-8",
        # a shell that starts jobs in the background has them ignore this signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        lines = []
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.strip())
            if moment in line:
                process.send_signal(how)
    return process.returncode, lines


@pytest.fixture(scope="module")
def stopped_runs(whole_run, tmp_path_factory):
    """The same run, stopped again and again: what each process said, and the folder."""
    place = tmp_path_factory.mktemp("stopped")
    arguments = ("recipe", whole_run.recipe, "--out", place / "run")
    said = [stopped_at(*kill, *arguments, cwd=place) for kill in KILLS]
    last = in_subprocess(*arguments, cwd=place)
    said.append((last.returncode, [line.strip() for line in last.stderr.splitlines()]))
    return place / "run", said


@pytest.mark.slow
def test_a_run_killed_at_several_moments_ends_with_the_same_bits(stopped_runs, whole_run):
    folder, said = stopped_runs

    assert [code for code, _ in said] == [-signal.SIGKILL, -signal.SIGKILL, 130, 0]
    weights = [name for name in files_in(whole_run.folder) if name.endswith(".safetensors")]
    mine, theirs = files_in(folder), files_in(whole_run.folder)
    assert "student/student.safetensors" in weights
    assert {name: mine[name] for name in weights} == {name: theirs[name] for name in weights}


@pytest.mark.slow
def test_each_process_goes_on_where_the_last_one_was_stopped(stopped_runs):
    _, said = stopped_runs
    second, third, last = (lines for _, lines in said[1:])

    def steps(lines, stage):
        return [line for line in lines if line.startswith(f"{stage} ") and "/" in line]

    assert steps(second, "distill")[0].startswith("distill 62% (5/8)")
    assert "refit: done before" in second
    assert "distill: done before" in third
    # the last checkpoint before the interruption at step 3 was at step 2
    assert steps(last, "adapt")[0].startswith("adapt 50% (3/6)")
    assert said[2][1][-1] == "interrupted: the same command goes on where it stopped"


@pytest.mark.slow
def test_a_run_killed_in_a_later_round_ends_with_the_same_bits(whole_run, tmp_path):
    changes = ("stages.distill.rounds=2", "stages.distill.assistant=true", "stages.adapt=off")
    arguments = ("recipe", whole_run.recipe, "--set", *changes, "--out")

    code, _ = stopped_at(
        "distill-2 50% (4/8)", signal.SIGKILL, *arguments, tmp_path / "killed", cwd=tmp_path
    )
    resumed = in_subprocess(*arguments, tmp_path / "killed", cwd=tmp_path)
    whole = in_subprocess(*arguments, tmp_path / "whole", cwd=tmp_path)

    assert (code, resumed.returncode, whole.returncode) == (-signal.SIGKILL, 0, 0)
    assert resumed.stderr.count("done before") == 9
    assert "distill-2 62% (5/8)" in resumed.stderr
    mine, theirs = files_in(tmp_path / "killed"), files_in(tmp_path / "whole")
    weights = [name for name in theirs if name.endswith(".safetensors")]
    assert "student/student.safetensors" in weights
    assert {name: mine[name] for name in weights} == {name: theirs[name] for name in weights}


def test_a_finished_run_does_nothing_new(run_copy, whole_run, call):
    before = files_in(run_copy)
    times = {path: path.stat().st_mtime_ns for path in run_copy.glob("*/done.json")}

    again = call("recipe", whole_run.recipe, "--out", run_copy)

    after = files_in(run_copy)
    assert again.code == 0
    assert again.err.count("done before") == len(STAGES)
    changed = {name for name in before if before[name] != after.get(name)}
    # reports say when, and the recipe says where
    assert changed <= {"report.json", "report.md", "report.html", "recipe.yaml"}
    assert before.keys() == after.keys()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert again.out.splitlines()[0] == whole_run.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("name=other", None),
        ("stages.measure.latency_rounds=2", "measure"),
        ("stages.adapt.consistency=0.5", "adapt"),
        ("stages.adapt.training.steps=2", "adapt"),
        ("task.calibration_images=3", "score"),
        ("task.real=builtin", "adapt"),
        ("task.test=builtin", "measure"),
        ("task.max_test_images=1", "measure"),
    ],
)
def test_a_changed_setting_runs_its_stage_and_the_later_ones(
    run_copy, whole_run, call, override, first
):
    place = len(STAGES) if first is None else STAGES.index(first)

    again = call("recipe", whole_run.recipe, "--set", override, "--out", run_copy)

    assert again.code == 0, again.err
    done = [name for name in STAGES if f"{name}: done before" in again.err]
    assert done == STAGES[:place]
    markers = {
        name: (run_copy / f"{number:02d}_{name}" / "done.json").read_bytes()
        == (whole_run.folder / f"{number:02d}_{name}" / "done.json").read_bytes()
        for number, name in enumerate(STAGES)
    }
    assert [name for name, same in markers.items() if same] == STAGES[:place]


def test_stages_before_adaptation_read_nothing_that_they_are_not_keyed_by(
    whole_run, call, tmp_path, one_thread
):
    folder = tmp_path / "run"
    changed = ("task.real=builtin", "task.test=builtin", "task.max_test_images=1")
    without = ("stages.adapt=off", "stages.measure=off")

    done = call("recipe", whole_run.recipe, "--set", *changed, *without, "--out", folder)

    assert done.code == 0, done.err
    mine, theirs = files_in(folder), files_in(whole_run.folder)
    weights = [name for name in mine if re.match(r"\d\d_.*\.safetensors", name)]
    assert "04_distill" in {name.split("/")[0] for name in weights}
    assert {name: mine[name] for name in weights} == {name: theirs[name] for name in weights}


def test_new_photographs_in_a_folder_leave_the_distilled_student(whole_run, images, call, tmp_path):
    images = shutil.copytree(images, tmp_path / "images")
    places = [f"task.{use}={images / use}" for use in ("train", "real", "test")]
    base = ("recipe", whole_run.recipe, "--out", tmp_path / "run", "--set", *places)
    first = call(*base, "stages.distill.training.steps=2")
    shutil.copy(next((images / "real").iterdir()), images / "real" / "another.png")

    again = call(*base, "stages.distill.training.steps=2")

    assert first.code == again.code == 0, again.err
    assert [name for name in STAGES if f"{name}: done before" in again.err] == STAGES[:5]


def test_stages_may_be_taken_out_and_put_back(run_copy, whole_run, call):
    base = ("recipe", whole_run.recipe, "--out", run_copy)

    without = call(*base, "--set", "stages.adapt=off")
    again = call(*base)

    assert without.code == again.code == 0
    assert "refused" not in without.out
    assert again.err.count("done before") == len(STAGES)
    assert again.out.splitlines()[0] == whole_run.stdout.splitlines()[0]


def test_without_resume_everything_is_done_again_and_equal(run_copy, whole_run, call, one_thread):
    again = call("recipe", whole_run.recipe, "--out", run_copy, "--no-resume")

    assert again.code == 0, again.err
    assert "done before" not in again.err
    name = "student/student.safetensors"
    assert files_in(run_copy)[name] == files_in(whole_run.folder)[name]


def test_a_folder_in_use_is_refused(run_copy, whole_run, call):
    before = files_in(run_copy)

    with open_run(run_copy):
        refused = call("recipe", whole_run.recipe, "--out", run_copy, "--no-resume")

    assert refused.code == 2
    assert refused.err == (
        f"error: {run_copy} is in use by another run: wait until it ends or use another folder\n"
    )
    assert files_in(run_copy) == before


def test_a_folder_of_something_else_is_not_touched(whole_run, call, tmp_path):
    mine = tmp_path / "mine"
    (mine / "00_score").mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work", encoding="utf-8")
    before = files_in(mine)

    for options in ([], ["--no-resume"]):
        refused = call("recipe", whole_run.recipe, "--out", mine, *options)
        assert refused.code == 2
        assert refused.err.startswith(f"error: {mine} is no run folder")
        assert refused.err.count("\n") == 1

    assert files_in(mine) == before
    assert (mine / "00_score").is_dir()


def test_a_result_that_was_damaged_is_named(run_copy, whole_run, call):
    weights = run_copy / "04_distill" / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    again = call("recipe", whole_run.recipe, "--out", run_copy)

    assert again.code == 2
    last = again.err.splitlines()[-1]
    assert last.startswith(f"error: {weights} is damaged")
    assert "Traceback" not in again.err

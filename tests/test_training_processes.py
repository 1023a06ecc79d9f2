"""Two processes reach what one process with the whole batch does, and stop together."""

import subprocess
import sys
from pathlib import Path

import pair
import pytest
import torch
from pair import Trial, adapter
from small_runs import environment

from coa_compress.cli.team import team_of
from coa_compress.compressor import Compressor
from coa_compress.errors import NoEffectWarning, RunError, SettingError, TrainingError
from coa_compress.training.launching import launch_processes
from coa_compress.training.processes import ALONE, SAID_BY_THE_FIRST, Processes

# rounding of float32, and what Adam makes of it in a few steps
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def run_pair(root):
    """Run two processes to their end; return the exit code and the words of each."""
    script = str(Path(pair.__file__))
    started = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(root)],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=1200)[1] for process in started]
    return [process.returncode for process in started], said


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found in every scenario."""
    root = tmp_path_factory.mktemp("pair")
    codes, said = run_pair(root)
    assert codes == [0, 0], said
    return [torch.load(root / f"found_{rank}.pt", weights_only=False) for rank in range(2)]


def assert_close(left, right, *, but=(), **tolerance):
    assert left["state"].keys() == right["state"].keys()
    for name in left["state"].keys() - set(but):
        tensor = left["state"][name]
        torch.testing.assert_close(tensor, right["state"][name], **tolerance)


def assert_identical(left, right):
    assert_close(left, right, rtol=0, atol=0)
    assert left["losses"] == right["losses"]
    assert left.get("validation") == right.get("validation")
    assert left.get("best") == right.get("best")


@pytest.mark.parametrize(
    ("name", "trial", "tolerance"),
    [
        ("plain", {}, CLOSE),
        ("double", {"dtype": torch.float64}, EXACT),
        ("adapter", {"adapter": adapter()}, CLOSE),
        ("split", {"adapter": adapter()}, CLOSE),
    ],
)
def test_two_processes_give_the_student_of_one_with_the_whole_batch(found, name, trial, tolerance):
    one = Trial(**trial).fit()

    # a buffer that only the network knows is that of the first process
    assert_close(found[0][name], one, but=["largest"], **tolerance)
    for key, values in one["losses"].items():
        assert found[0][name]["losses"][key] == pytest.approx(values, rel=1e-3, abs=1e-6)
    assert found[0][name]["best"][0] == one["best"][0]
    assert set(one["examples"]) == {4}
    assert set(found[0][name]["examples"]) == set(found[1][name]["examples"]) == {2}


@pytest.mark.parametrize("name", ["plain", "double", "adapter", "resumed", "split", "run"])
def test_every_process_is_given_the_same_bits(found, name):
    assert_identical(found[0][name], found[1][name])


def test_the_first_process_alone_validates(found):
    assert [one["plain"]["validations"] for one in found] == [2, 0]


@pytest.mark.parametrize(
    ("stopped", "whole"),
    [("resumed", "adapter"), ("killed", "plain"), ("split_resumed", "split")],
)
def test_a_pair_that_was_stopped_ends_with_the_same_bits(found, stopped, whole):
    assert all(one["was_killed"] for one in found)
    assert_identical(found[0][stopped], found[0][whole])


@pytest.mark.parametrize("name", ["diverged", "split_diverged"])
def test_one_bad_share_stops_all_with_the_same_message(found, name):
    kind, text, notes = found[0][name]
    assert kind == "TrainingError"
    assert "loss 'halve' became nan at step 3 of 6 of 'halve': lower learning_rate" in text
    assert text.endswith("training.safetensors")
    assert notes == []
    assert found[1][name] == (kind, text, [SAID_BY_THE_FIRST])


def test_a_bad_validation_stops_all_with_the_same_message(found):
    kind, text, notes = found[0]["bad_validation"]
    assert (kind, notes) == ("TrainingError", [])
    assert "validation of 'halve' returned nan" in text
    assert found[1]["bad_validation"] == (kind, text, [SAID_BY_THE_FIRST])


def test_an_error_of_the_first_process_stops_the_others(found):
    assert found[0]["failing_validation"][0] == "IndexError"
    kind, text, notes = found[1]["failing_validation"]
    assert kind == "RunError"
    assert "process 0 stopped by IndexError" in text
    assert notes == [SAID_BY_THE_FIRST]


@pytest.mark.parametrize(
    ("name", "what"), [("other_jobs", "training job or network"), ("apart", "checkpoint")]
)
def test_processes_that_would_not_do_the_same_do_not_begin(found, name, what):
    for one in found:
        kind, text, _ = one[name]
        assert kind == "TrainingError"
        assert f"process 1 has another {what} than process 0" in text


def test_a_whole_run_of_two_processes_is_that_of_one(found, tmp_path):
    one = pair.whole_run(ALONE, tmp_path / "run")

    assert_close(found[0]["run"], one, **CLOSE)
    assert found[1]["run"]["widths"] == one["widths"]
    assert found[1]["run"]["page"] == "report.html"


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(TrainingError, match="batch_size 3 cannot be shared by 2 processes: make"):
        Trial(Processes(count=2)).fit(settings={"batch_size": 3})
    with pytest.raises(TrainingError, match="batch_size 5 cannot be shared"):
        Processes(count=2).share(torch.zeros(5))


def test_shares_make_up_the_batch():
    batch = torch.arange(12)
    shares = [Processes(rank=rank, count=3).share(batch) for rank in range(3)]
    assert sorted(torch.cat(shares).tolist()) == batch.tolist()
    assert ALONE.share(batch) is batch


def test_what_cannot_be_launched_is_refused():
    with pytest.raises(TrainingError, match="cannot train on 0 devices: give 1 or more"):
        launch_processes("cpu", devices=0)
    with pytest.raises(TrainingError, match="torch sees 0 GPUs here, use cpu"):
        launch_processes("cuda", devices=2)
    with pytest.warns(NoEffectWarning, match="strategy fsdp has no effect: there is one process"):
        assert launch_processes("cpu", devices=1, strategy="fsdp") is ALONE


def test_a_temporary_folder_cannot_be_shared():
    with pytest.raises(RunError, match="2 processes need one run folder that all see: give out="):
        Compressor(torch.nn.Conv2d(3, 3, 1)).run(processes=Processes(count=2))


def test_torchrun_says_how_many_processes_there_are():
    started = {"TORCHELASTIC_RUN_ID": "a", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4", "RANK": "3"}
    team = team_of(None, "fsdp", started)
    assert (team.devices, team.nodes, team.strategy, team.follows) == (2, 2, "fsdp", True)
    assert not team_of(2, "ddp", started | {"RANK": "0"}).follows
    with pytest.raises(SettingError, match="--devices 4, but torchrun has started 2 processes"):
        team_of(4, "ddp", started)


def test_alone_whatever_the_environment_says():
    assert not team_of(None, "ddp", {"LOCAL_RANK": "1"}).follows


CLI = """\
name: pair
device: cpu
task: {name: dehazing, teacher: random, train: IMAGES, crop: 32, example_size: [32, 32],
       validation_images: 1, calibration_images: 1}
stages:
  train: {training: {steps: 2, batch_size: 2, validate_every: 2, learning_rate: 1e-3}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "starter",
    [["-m", "coa_compress"], ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m"]],
)
def test_the_command_starts_two_processes_and_one_speaks(tmp_path, images, starter):
    text = CLI.replace("IMAGES", str(images / "train"))
    (tmp_path / "pair.yaml").write_text(text, encoding="utf-8")
    torchrun = len(starter) > 2
    command = [sys.executable, *starter, *(["coa_compress"] if torchrun else [])]
    done = subprocess.run(
        [
            *command,
            "recipe",
            "pair.yaml",
            "--out",
            "run",
            *([] if torchrun else ["--devices", "2"]),
        ],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert done.stderr.count("train ...") == 1
    assert (tmp_path / "run" / "report.html").is_file()

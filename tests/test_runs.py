"""Run folders: never shared, never overwriting, never resuming wrongly."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coa_compress.errors import RunError
from coa_compress.runs import RunFolder, digest_of, open_run


class KilledError(BaseException):
    """Stands for a kill -9 between two writes."""


def finish(run: RunFolder, digest: str) -> None:
    stage = run.stage_folder(0, "prune")
    if not run.is_done(stage, digest):
        folder = run.begin(stage, digest)
        (folder / "result").write_text(digest)
        run.mark_done(stage, digest, 1.5)


def test_a_stage_is_done_once_it_is_marked(tmp_path):
    with open_run(tmp_path / "new" / "run") as run:
        stage = run.stage_folder(1, "distill")
        assert stage == run.path / "01_distill"
        assert not stage.exists()
        assert not run.is_done(stage, "a")
        with pytest.raises(RunError, match=r"stage 01_distill of .* is not done"):
            run.seconds(stage)
        with pytest.raises(RunError, match=r"stage 01_distill of .* is not done"):
            run.warnings(stage)

        assert run.begin(stage, "a") == stage
        (stage / "part").touch()
        assert not run.is_done(stage, "a")
        run.mark_done(stage, "a", 2.5, warnings=["taps has no effect"])

    with open_run(tmp_path / "new" / "run") as run:
        assert run.is_done("01_distill", "a")
        assert not run.is_done(stage, "b")
        assert run.seconds(stage) == 2.5
        assert run.warnings(stage) == ("taps has no effect",)


def test_a_run_of_before_warnings_were_recorded_still_counts(tmp_path):
    with open_run(tmp_path) as run:
        stage = run.begin("00_distill", "a")
        run.mark_done(stage, "a", 1.0)
        done = next(path for path in stage.iterdir() if "seconds" in path.read_text())
        done.write_text(json.dumps({"digest": "a", "seconds": 1.0}))
        assert run.is_done(stage, "a")
        assert run.warnings(stage) == ()


def test_begin_keeps_partial_results_of_the_same_digest_only(tmp_path):
    with open_run(tmp_path) as run:
        stage = run.begin("00_distill", "a")
        (stage / "checkpoints").mkdir()
        (stage / "checkpoints" / "part").touch()
    with open_run(tmp_path) as run:
        run.begin(stage, "a")
        assert (stage / "checkpoints" / "part").exists()
        run.mark_done(stage, "a", 1.0)
        run.begin(stage, "a")
        assert not run.is_done(stage, "a")
        run.begin(stage, "b")
        assert sorted(path.name for path in stage.iterdir()) == ["stage.json"]
        with pytest.raises(RunError, match="was not begun with digest a: call begin first"):
            run.mark_done(stage, "a", 1.0)


def test_a_folder_in_use_is_refused_until_its_process_ends(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from coa_compress.runs import open_run\n"
        "with open_run(Path(sys.argv[1])): Path(sys.argv[1], 'ready').touch(); time.sleep(900)"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment) as process:
        until = time.monotonic() + 900
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        with pytest.raises(RunError, match="is in use by another run: wait"), open_run(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    with (
        open_run(tmp_path),
        pytest.raises(RunError, match="is in use by another run"),
        open_run(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("photo.png", "x", "it holds 'photo.png' and no run.json"),
        ("run.json", '{"tool": "other"}', "its run.json is not of coa-compress"),
        ("run.json", "", "its run.json is not of coa-compress"),
    ],
)
def test_a_folder_of_something_else_is_not_touched(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=f"is no run folder .{reason}"), open_run(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == text


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot use .*file as a run folder: File exists"):
        open_run(tmp_path / "file").__enter__()


def test_reset_removes_only_stages_that_a_run_made(tmp_path):
    with open_run(tmp_path) as run:
        run.begin("00_prune", "a")
        (tmp_path / "01_mine").mkdir()
        (tmp_path / "01_mine" / "photo").touch()
        (tmp_path / "notes").mkdir()
        run.reset()
        with pytest.raises(RunError, match="01_mine was not made by this run: move it away"):
            run.begin("01_mine", "a")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".lock", "01_mine", "notes", "run.json"]
    assert (tmp_path / "01_mine" / "photo").exists()


@pytest.mark.parametrize("stage", ["prune", "../00_prune", "00_a/01_b", "/00_prune", "", "00_"])
def test_a_name_outside_the_run_is_refused(tmp_path, stage):
    with open_run(tmp_path / "run") as run, pytest.raises(RunError, match="is no stage of"):
        run.begin(stage, "a")


def killer(after: int):
    calls = [0]

    def guard(function):
        def guarded(*args, **kwargs):
            calls[0] += 1
            if calls[0] > after:
                raise KilledError
            return function(*args, **kwargs)

        return guarded

    return guard, calls


@pytest.mark.parametrize("after", range(60))
def test_killed_between_any_two_writes_a_run_goes_on_rightly(tmp_path, monkeypatch, after):
    guard, calls = killer(after)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", guard(os.fsync))
        patch.setattr(shutil, "rmtree", guard(shutil.rmtree))
        for name in ("replace", "unlink", "mkdir", "write_text"):
            patch.setattr(Path, name, guard(getattr(Path, name)))
        try:
            for digest in ("old", "new"):
                with open_run(tmp_path / "run") as run:
                    finish(run, digest)
                    run.begin("00_prune", digest)
                    finish(run, digest)
        except KilledError:
            killed = True
        else:
            killed = False
    assert killed or calls[0] <= after

    with open_run(tmp_path / "run") as run:
        stage = run.stage_folder(0, "prune")
        for digest in ("old", "new"):
            if run.is_done(stage, digest):
                assert (stage / "result").read_text() == digest
        finish(run, "new")
        assert run.is_done(stage, "new")
        assert not run.is_done(stage, "old")
        assert (stage / "result").read_text() == "new"
        assert not list(run.path.glob(".trash-*"))
        assert not list(run.path.glob(".new-*"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, max_examples=50)
@given(value=st.dictionaries(st.text(), json_values, max_size=4))
def test_a_digest_does_not_depend_on_the_order_of_keys(value):
    backwards = dict(reversed(value.items()))
    assert digest_of("a", value) == digest_of("a", backwards)
    assert digest_of("a", value) != digest_of("b", value)
    assert len(digest_of(value)) == 16


def test_what_is_no_json_has_no_digest():
    for part in (Path("x"), float("nan"), {1, 2}):
        with pytest.raises(RunError, match=r"cannot identify a stage by .*: use JSON values"):
            digest_of(part)

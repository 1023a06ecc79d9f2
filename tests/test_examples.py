"""The examples run as they are, and a task stays a matter of a few lines."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import environment

from coa_compress import load
from coa_compress.errors import WeightsError
from coa_compress.report.write import read_report
from coa_compress.testing import check_task

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name, out):
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, out],
        env=environment(),
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def imported(name):
    space = {"__name__": name}
    exec(compile((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), name, "exec"), space)
    return space


@pytest.mark.slow
def test_a_network_of_ones_own_is_compressed_saved_and_opened(tmp_path):
    out = tmp_path / "run"

    summary, place, shape = run_example("own_network.py", out)

    report = read_report(out)
    assert summary == report["headline"]
    assert place == f"report: {out / 'report.html'}"
    assert shape == "(1, 3, 100, 75)"
    assert report["allocation"]["macs_kept"] <= 0.5
    with pytest.raises(WeightsError, match=r"'__main__:Denoiser' .*: pass model="):
        load(out / "saved")
    student = load(out / "saved", model=imported("own_network")["Denoiser"]())
    assert student(torch.rand(1, 3, 33, 47)).shape == (1, 3, 33, 47)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_task_of_ones_own_is_run(tmp_path):
    out = tmp_path / "run"

    (summary,) = run_example("own_task.py", out)

    report = read_report(out)
    assert summary == report["headline"]
    assert report["allocation"]["macs_kept"] <= 0.5
    assert report["measurements"]["student"]["l1"]["validation"] > 0


def test_a_task_of_ones_own_takes_at_most_40_lines_and_conforms():
    source = (EXAMPLES / "own_task.py").read_text(encoding="utf-8")
    (task,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]

    lines = source.splitlines()[task.lineno - 1 : task.end_lineno]
    assert len(lines) <= 40
    check_task(imported("own_task")["Denoising"]())

"""What several test files share: images, and one whole run in another process."""

import os

# as the command line has it, before torch loads MKL: bits are compared across processes
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

import fcntl
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from small_runs import DEHAZE, in_subprocess, put_images

from coa_compress.cli.commands import run


@dataclass(frozen=True)
class WholeRun:
    """A run of the command line that nobody interrupted; read it, never write into it."""

    folder: Path
    recipe: Path
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that all workers of a test session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@pytest.fixture(scope="session")
def images(shared_folder):
    """Small images: ``train`` and ``test`` pairs, ``real`` photographs."""
    root = shared_folder / "images"
    with (shared_folder / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            put_images(root)
    return root


@pytest.fixture(scope="session")
def whole_run(shared_folder, images):
    """The dehazing job on small images, run once for all workers."""
    place = shared_folder / "whole_run"
    with (shared_folder / "whole_run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "said.json").exists():
            place.mkdir(exist_ok=True)
            (place / "tiny.yaml").write_text(DEHAZE.format(images=images), encoding="utf-8")
            done = in_subprocess("recipe", "tiny.yaml", "--out", "run", cwd=place)
            said = [done.returncode, done.stdout, done.stderr]
            (place / "said.json").write_text(json.dumps(said), encoding="utf-8")
    said = json.loads((place / "said.json").read_text(encoding="utf-8"))
    return WholeRun(place / "run", place / "tiny.yaml", *said)


@dataclass(frozen=True)
class Said:
    """What one command returned and printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys):
    """Run one command of the program in this process."""

    def called(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return called

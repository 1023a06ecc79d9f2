"""The command line: what it calls, prints and returns; the engine is a stand-in."""

import functools
import json
import math
import os
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from coa_compress.cli import main
from coa_compress.cli.measures import measures_table
from coa_compress.errors import BudgetError, CoaWarning
from coa_compress.recipe import files
from coa_compress.recipe.schema import Schema
from coa_compress.registry import Registry
from coa_compress.settings import PositiveInt


class Score:
    name = "score"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        steps: PositiveInt = 3


class Toy:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Settings:
        crop: PositiveInt = 32


class Folders:
    def apply_folder(self, model, source, out, progress):
        progress(1, 1, {})
        out.mkdir()
        (out / "a.png").write_bytes(b"")
        return [out / "a.png"]

    def evaluate_folder(self, model, data, progress):
        progress(1, 2, {})
        return {"psnr_db": {"a": 27.5, "b": math.inf}, "ssim": {"a": 0.91}}


class FakeEngine(types.ModuleType):
    """Stands for ``coa_compress.compressor`` and ``opening``, and remembers how it was called."""

    def __init__(self):
        super().__init__("coa_compress.compressor")
        self.recipe: Any = None
        self.resume: bool | None = None
        self.cache: Path | None = None
        self.processes = 0
        self.named = ""
        self.task: object = Folders()
        self.action = lambda: None
        engine = self

        class Compressor:
            device = "cpu"

            def __init__(self, *, recipe, observer):
                engine.recipe = recipe
                self.observer = observer

            def plan(self):
                engine.action()
                return "the plan"

            def run(self, *, processes, cache=None, resume=True):
                engine.resume, engine.cache, engine.processes = resume, cache, processes.count
                self.observer.on_stage_start("score", "3 groups")
                self.observer.on_progress(1, 2, {"loss": 0.5})
                engine.action()
                self.observer.on_stage_end("score", 1.25, "done")
                report = Path(engine.recipe.out) / "report.html"
                return types.SimpleNamespace(summary="the summary", report_path=report)

        self.Compressor = Compressor

    def open_student(self, source, weights=None, *, task=""):
        self.named = task
        return nn.Identity(), self.task


@pytest.fixture
def engine(monkeypatch):
    tasks: Registry[Any] = Registry("task", group="coa_compress.no_such_group")
    tasks.register("toy")(Toy)
    schema = Schema(stages=(Score,), tasks=tasks)
    monkeypatch.setattr(files, "load_recipe", functools.partial(files.load_recipe, schema=schema))
    fake = FakeEngine()
    monkeypatch.setitem(sys.modules, "coa_compress.compressor", fake)
    monkeypatch.setitem(sys.modules, "coa_compress.opening", fake)
    return fake


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("name: demo\ntask: toy\nstages: {score: }\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def call(capsys):
    def run(*arguments):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_recipe_runs_and_ends_with_the_summary_and_the_report(engine, recipe_file, call):
    code, out, err = call("recipe", recipe_file)

    report = Path("runs/demo/report.html")
    assert (code, out) == (0, f"the summary\nreport: {report}\n")
    assert err.splitlines() == [
        "score: 3 groups",
        "  score 50% (1/2), 0.0 s, loss 0.5",
        "✓ score 1.2 s  done",
    ]
    assert engine.resume is True
    assert engine.processes == 1


def test_recipe_passes_every_option_on(engine, recipe_file, call):
    options = ["--out", "x", "--device", "cuda:0", "--seed", "7", "--no-resume", "--cache", "c"]
    code, out, _ = call(
        "recipe", recipe_file, *options, "--set", "stages.score.steps=4", "task.crop=8", "name=b"
    )

    assert code == 0
    assert out.endswith(f"report: {Path('x/report.html')}\n")
    recipe = engine.recipe
    assert (recipe.name, recipe.out, recipe.device, recipe.seed) == ("b", "x", "cuda:0", 7)
    assert recipe.stages["score"].steps == 4
    assert recipe.task.settings.crop == 8
    assert engine.resume is False
    assert engine.cache == Path("c")


def test_plan_trains_nothing(engine, recipe_file, call):
    assert call("recipe", recipe_file, "--plan") == (0, "the plan\n", "")
    assert engine.resume is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["none.yaml"], "error: no recipe file none.yaml: give the path of a YAML file\n"),
        (["FILE", "--device", "x"], "error: device must be auto, cpu, cuda or cuda:N, got 'x'\n"),
        (["FILE", "--seed", "-1"], "error: Recipe.seed must be at least 0, got -1\n"),
        (
            ["FILE", "--set", "task.crop=0", "sed=1"],
            "error: --set task.crop=0: must be at least 1, got 0\n"
            "--set sed=1: unknown key 'sed': did you mean seed? known: device, model, name, out, "
            "seed, stages, structure, task, weights\n",
        ),
    ],
)
def test_a_mistake_is_said_without_traceback(engine, recipe_file, call, arguments, expected):
    arguments = [recipe_file if item == "FILE" else item for item in arguments]

    assert call("recipe", *arguments) == (2, "", expected)


@pytest.mark.parametrize(
    "arguments",
    [
        ["recipe"],
        ["recipe", "r.yaml", "--foo"],
        ["recipe", "r.yaml", "--seed", "x"],
        ["apply", "run"],
        ["list", "cars"],
        ["fly"],
        [],
    ],
)
def test_wrong_usage_exits_with_2(call, arguments):
    code, _, err = call(*arguments)

    assert code == 2
    assert "Usage: coa-compress" in err
    assert "Traceback" not in err


def test_an_error_of_the_engine_is_one_line(engine, recipe_file, call):
    def fail():
        message = "cannot keep 5% of macs: the least is 7.4%"
        raise BudgetError(message)

    engine.action = fail
    code, out, err = call("recipe", recipe_file)

    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == "error: cannot keep 5% of macs: the least is 7.4%"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "interrupted: the same command goes on where it stopped"),
        (
            ["--no-resume"],
            "interrupted: without --no-resume the same command goes on where it stopped",
        ),
        (["--plan"], "interrupted: nothing was changed"),
    ],
)
def test_an_interruption_says_how_to_go_on(engine, recipe_file, call, options, expected):
    def interrupt():
        raise KeyboardInterrupt

    engine.action = interrupt
    code, out, err = call("recipe", recipe_file, *options)

    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == expected


def test_a_defect_keeps_its_traceback(engine, recipe_file, call):
    def fail():
        message = "a defect"
        raise ZeroDivisionError(message)

    engine.action = fail
    with pytest.raises(ZeroDivisionError, match="a defect"):
        call("recipe", recipe_file)


def test_our_warnings_are_one_line_and_others_as_ever(engine, recipe_file, call):
    def warn():
        warnings.simplefilter("always")
        warnings.warn("nothing\n to cut", CoaWarning, stacklevel=1)
        warnings.warn("old", DeprecationWarning, stacklevel=1)

    engine.action = warn
    with pytest.warns(DeprecationWarning, match="old"):
        code, _, err = call("recipe", recipe_file)

    assert code == 0
    assert "warning: nothing to cut" in err.splitlines()


def test_apply_uses_the_task_on_the_folder(engine, tmp_path, call):
    (tmp_path / "in").mkdir()
    code, out, err = call("apply", "run", tmp_path / "in", "--out", tmp_path / "out")

    assert (code, out) == (0, f"1 files in {tmp_path / 'out'}\n")
    assert "apply 100% (1/1)" in err


def test_apply_never_writes_over_the_photos(engine, tmp_path, call):
    (tmp_path / "in").mkdir()
    code, _, err = call("apply", "run", tmp_path / "in", "--out", tmp_path / "in" / "." / "")

    assert code == 2
    assert "is the folder of the photos, which would be lost: choose another" in err


@pytest.mark.parametrize("command", ["apply", "evaluate"])
@pytest.mark.parametrize(("name", "what"), [("a", "does not exist"), ("f", "is not a folder")])
def test_a_folder_must_be_one(engine, tmp_path, call, command, name, what):
    (tmp_path / "f").write_bytes(b"")
    folder = tmp_path / name
    arguments = {"apply": ["run", folder, "--out", "x"], "evaluate": ["run", "--data", folder]}

    code, out, err = call(command, *arguments[command])

    assert (code, out) == (2, "")
    assert err == f"error: {folder} {what}: give a folder of images\n"


@pytest.mark.parametrize("command", ["apply", "evaluate"])
def test_a_task_without_folders_is_named(engine, tmp_path, call, command):
    engine.task = object()
    arguments = {"apply": ["run", tmp_path, "--out", "x"], "evaluate": ["run", "--data", tmp_path]}

    code, _, err = call(command, *arguments[command])

    assert code == 2
    assert "error: task object cannot work on folders: it has no apply_folder" in err


def test_evaluate_prints_only_json_when_asked(engine, tmp_path, call):
    code, out, _ = call("evaluate", "builtin:teacher", "--data", tmp_path, "--json")

    assert code == 0
    assert json.loads(out) == {
        "model": "builtin:teacher",
        "data": str(tmp_path),
        "measures": {"psnr_db": {"a": 27.5, "b": None}, "ssim": {"a": 0.91}},
    }


def test_evaluate_prints_a_table(engine, tmp_path, call):
    code, out, _ = call("evaluate", "run", "--data", tmp_path)

    assert code == 0
    assert out == "measure     a    b\npsnr_db  27.5  inf\nssim     0.91    -\n"
    assert measures_table({}) == "measure"
    assert engine.named == ""


@pytest.mark.parametrize("command", ["apply", "evaluate"])
def test_another_task_may_use_or_judge_a_student(engine, tmp_path, call, command):
    folder = {"apply": (tmp_path, "--out", tmp_path / "out"), "evaluate": ("--data", tmp_path)}

    assert call(command, "a:B", *folder[command], "--task", "dehazing")[0] == 0
    assert engine.named == "dehazing"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("recipes", "dehaze"),
        ("scorers", "taylor"),
        ("allocators", "greedy"),
        ("tasks", "dehazing"),
        ("stages", "distill"),
        ("losses", "restoration: l1, charbonnier, psnr, frequency, ssim"),
        ("features", "attention"),
    ],
)
def test_list_names_what_there_is(call, kind, name):
    if kind == "stages" and not files.SCHEMA.stages:
        pytest.skip("no stages")
    code, out, err = call("list", kind)

    assert (code, err) == (0, "")
    assert any(line.startswith(name) for line in out.splitlines())


def test_list_without_a_kind_lists_everything(call):
    code, out, _ = call("list")

    heads = [line for line in out.splitlines() if not line.startswith("  ")]
    assert code == 0
    assert [head for head in heads if head] == [
        "recipes:",
        "scorers:",
        "allocators:",
        "tasks:",
        "stages:",
        "losses:",
        "features:",
    ]


def test_version(call):
    assert call("--version") == (0, "coa-compress 0.1.0\n", "")


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from coa_compress.cli import main\n"
        "try:\n    main(['recipe', '--help'])\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'yaml', 'PIL', 'coa_compress.recipe'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "--no-resume" in done.stdout


def test_every_module_loads_where_there_is_nothing_of_unix():
    code = (
        "import importlib, pkgutil, sys\n"
        "sys.modules.update(dict.fromkeys(('fcntl', 'resource', 'termios')))\n"
        "import coa_compress\n"
        "for found in pkgutil.walk_packages(coa_compress.__path__, 'coa_compress.'):\n"
        "    importlib.import_module(found.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_a_narrow_code_page_does_not_stop_a_command():
    code = (
        "import typer\n"
        "from coa_compress.cli import commands, main\n"
        "commands.app.command('say')(lambda: typer.echo('\\u2713 \\u6f22'))\n"
        "main(['say'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
    )

    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"?", b"?"]


def test_the_stand_in_is_what_the_protocol_asks():
    from coa_compress.protocols import Deployable

    assert isinstance(Folders(), Deployable)
    assert torch.equal(nn.Identity()(torch.ones(1)), torch.ones(1))

"""What the README shows works: every command parses, every line of Python runs."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from small_runs import BUILTIN_WEIGHTS, DEHAZE, Plain, seeded, small_recipe

from coa_compress import Result, compressor
from coa_compress.cli.commands import app
from coa_compress.recipe.files import load_recipe
from coa_compress.tasks.dehazing.networks import HazeUNet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    "README.md",
    "Makefile",
    "CONTRIBUTING.md",
    *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")),
    "coa_compress/tasks/dehazing/weights/README.md",
]


def commands():
    """Return every command of the program that a page shows."""
    found = []
    for page in PAGES:
        path = ROOT / page
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        joined = re.sub(r"\\\n\s*", "", text)
        found += re.findall(r"^(?: {4,}|\t)\S*coa-compress (.+)$", joined, flags=re.MULTILINE)
        found += re.findall(r"`coa-compress ([^`\n]+)`", text)
    return sorted(set(found))


def options_of(command):
    """Return the parsed options of a command; wrong ones raise."""
    group = typer.main.get_command(app)
    name, *arguments = shlex.split(command)
    sub = group.commands[name]  # type: ignore[attr-defined]
    return name, sub.make_context(name, arguments).params


def test_the_readme_shows_every_command():
    assert {command.split()[0] for command in commands()} >= {"recipe", "apply", "evaluate"}
    assert len(commands()) >= 6


@pytest.mark.parametrize("command", commands())
def test_every_command_shown_parses(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, options = options_of(command)

    if name == "recipe" and "*" not in str(options["file"]):
        overrides = [*(options["overrides"] or []), *(options["extra"] or [])]
        assert load_recipe(options["file"], overrides).stages


def test_a_wrong_option_would_be_found():
    with pytest.raises(Exception, match="No such option: --pln"):
        options_of("recipe recipes/dehaze.yaml --pln")


def test_every_file_that_is_linked_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)

    missing = [link for link in links if not (ROOT / link).exists()]
    assert links
    assert missing in ([], ["coa_compress/tasks/dehazing/weights/README.md"])


def test_the_python_block_runs(tmp_path, monkeypatch, images, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    dehaze = small_recipe(DEHAZE.format(images=images), stages__adapt="off", out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compressor, "default_recipe", small_recipe)
    monkeypatch.setattr(compressor, "load_recipe", lambda path: dehaze)
    space = {"model": seeded(Plain)}

    exec(block, space)

    assert isinstance(space["result"], Result)
    assert isinstance(space["student"], HazeUNet)
    image = torch.rand(1, 3, 20, 30)
    assert torch.equal(space["student"](image), space["result"].student(image))
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(not BUILTIN_WEIGHTS.is_file(), reason="the built-in teacher is not trained")
def test_the_main_job_of_the_readme_can_be_planned(call, tmp_path):
    said = call("recipe", ROOT / "recipes/dehaze.yaml", "--plan", "--out", tmp_path / "run")

    assert said.code == 0, said.err
    assert re.search(r"^macs .* of .* 2[0-5]\.[0-9]%$", said.out, flags=re.MULTILINE)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not BUILTIN_WEIGHTS.is_file(), reason="the built-in teacher is not trained")
def test_the_built_in_teacher_removes_haze(call, images):
    said = call("evaluate", "builtin:teacher", "--data", images / "test", "--json")

    assert said.code == 0, said.err
    assert '"psnr_db"' in said.out

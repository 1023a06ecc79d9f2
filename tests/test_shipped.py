"""Recipes that come along are found by name, in a checkout and where a wheel was installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coa_compress.recipe.ablation import load_ablation
from coa_compress.recipe.files import load_recipe
from coa_compress.recipe.shipped import shipped_recipes

ROOT = Path(__file__).parents[1]
NAMES = [path.stem for path in sorted((ROOT / "recipes").glob("*.yaml"))]
BUILT_FROM = ("coa_compress", "recipes", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def test_a_name_means_the_recipe_that_comes_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert load_recipe("dehaze") == load_recipe(ROOT / "recipes" / "dehaze.yaml")
    by_name = load_ablation("ablation", only=["core"])
    assert by_name == load_ablation(ROOT / "recipes" / "ablation.yaml", only=["core"])


def test_a_file_of_that_name_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dehaze").write_text("name: mine\ntask: {name: restoration}\nstages: {score: {}}\n")

    assert load_recipe("dehaze").name == "mine"


@pytest.mark.parametrize(("command", "kind"), [("recipe", "recipe"), ("ablate", "ablation")])
def test_a_name_that_does_not_come_along(call, command, kind):
    said = call(command, "dehase")

    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"error: no {kind} file dehase, and none of this name comes along: "
        f"did you mean dehaze? known: {', '.join(NAMES)}\n"
    )


def test_the_list_says_what_each_is_for_and_where_they_are(call):
    said = call("list", "recipes")

    *lines, last = said.out.splitlines()
    assert (said.code, said.err) == (0, "")
    assert [line.split()[0] for line in lines] == NAMES
    assert all(line.endswith(".") and len(line) < 120 for line in lines)
    assert last == f"in {ROOT / 'recipes'}: copy one to change it"


def test_an_installed_wheel_brings_them(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    alone = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed"]
    made = subprocess.run(
        [*pip, *alone, "--prefix", str(tmp_path / "installed"), str(source)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    (package,) = (tmp_path / "installed").rglob("coa_compress/__init__.py")
    code = (
        "import json; from coa_compress.recipe.shipped import shipped_recipes\n"
        "print(json.dumps({name: str(path) for name, path in shipped_recipes().items()}))"
    )

    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package.parents[1])},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )

    paths = json.loads(found.stdout)
    assert list(paths) == NAMES
    for name, path in paths.items():
        assert (tmp_path / "installed").resolve() in Path(path).parents
        assert Path(path).read_text() == shipped_recipes()[name].read_text()

"""Recipe files: read with every problem at once, written with every default."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from coa_compress.errors import RecipeError
from coa_compress.recipe.assembly import assemble, plain_recipe
from coa_compress.recipe.checking import Checker
from coa_compress.recipe.document import Where, parse_document, write_document
from coa_compress.recipe.overrides import apply_overrides
from coa_compress.recipe.schema import Recipe, Schema, TaskChoice
from coa_compress.recipe.shipped import locate
from coa_compress.registry import Registry
from coa_compress.stages.order import STAGES

TASKS: Registry[Any] = Registry("task", group="coa_compress.tasks")
"""Every task class, by name."""
GENERIC_TASK = "restoration"
"""Name of the task that suits any network from images to images."""
SCHEMA = Schema(stages=STAGES, tasks=TASKS)
"""What recipes may hold."""

_DEFAULT_STAGES = ("score", "allocate", "prune", "refit", "distill", "measure")
_DEFAULT_KEEP_MACS = 0.5
_DECIDES_NO_RESULT = ("name", "device", "out")


def load_recipe(
    path: Path | str, overrides: Sequence[str] = (), *, schema: Schema = SCHEMA
) -> Recipe:
    """Return the recipe of a file.

    Args:
        path: A YAML file, UTF-8, or the name of a recipe that comes along, such as ``dehaze``.
        overrides: Items such as ``stages.allocate.keep_macs=0.2``; they win over the file.
        schema: The stages and tasks that exist.

    Raises:
        RecipeError: If the file cannot be read, or anything in it or in the overrides is wrong:
            one line for each problem, each with file and line.

    >>> load_recipe("none.yaml")
    Traceback (most recent call last):
    coa_compress.errors.RecipeError: no recipe file none.yaml: give the path of a YAML file
    """
    file = locate(path, "recipe")
    return parse_recipe(
        read_text(file, "recipe"), source=str(file), overrides=overrides, schema=schema
    )


def read_text(path: Path, kind: str) -> str:
    """Return the text of a YAML file.

    Args:
        path: A file, UTF-8.
        kind: What it is, for messages.

    Raises:
        RecipeError: If it cannot be read.

    >>> read_text(Path("none.yaml"), "recipe")
    Traceback (most recent call last):
    coa_compress.errors.RecipeError: no recipe file none.yaml: give the path of a YAML file
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        message = f"no {kind} file {path}: give the path of a YAML file"
    except IsADirectoryError:
        message = f"{kind} {path} is a folder: give the path of a YAML file"
    except UnicodeDecodeError as error:
        message = f"{kind} {path} is not UTF-8 text (byte {error.start}): save it as UTF-8"
    except OSError as error:
        message = f"{kind} {path} cannot be read: {error.strerror}: check the path and its rights"
    raise RecipeError(message)


def parse_recipe(
    text: str, *, source: str, overrides: Sequence[str] = (), schema: Schema = SCHEMA
) -> Recipe:
    """Return the recipe of a YAML text.

    Args:
        text: One YAML document.
        source: Name of the file, for messages.
        overrides: Items such as ``stages.adapt=off``; they win over the text.
        schema: The stages and tasks that exist.

    Raises:
        RecipeError: If anything is wrong: one line for each problem.
    """
    root, problems = parse_document(text, source=source)
    root, more = apply_overrides(root, overrides)
    checker = Checker([*problems, *more])
    recipe = assemble(root, schema, checker)
    if recipe is None:
        message = "\n".join(problem.line() for problem in sorted(set(checker.problems)))
        raise RecipeError(message)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Return a recipe as YAML with every default written; parsing it gives the same recipe."""
    return write_document(plain_recipe(recipe))


def recorded_settings(
    settings_class: Any, values: Mapping[str, Any], *, source: str
) -> dict[str, Any]:
    """Return settings that stand in a file of ours, checked as those of a recipe are.

    Args:
        settings_class: The dataclass that they are of.
        values: JSON values; names that the class does not have, of another version, are left out.
        source: Name of the file, for messages.

    Raises:
        RecipeError: If anything is wrong: one line for each problem.

    >>> from coa_compress.tasks.restoration.settings import RestorationSettings
    >>> recorded_settings(RestorationSettings, {"tile": 512, "once": 1}, source="student.json")
    {'tile': 512}
    >>> recorded_settings(RestorationSettings, {"tile": "x"}, source="student.json")
    Traceback (most recent call last):
    coa_compress.errors.RecipeError: student.json: task.tile: must be a whole number, got 'x'
    """
    known = {item.name for item in fields(settings_class)}
    given = {name: value for name, value in values.items() if name in known}
    tree, problems = parse_document(write_document(given), source="", override=Where(0, source))
    checker = Checker(problems)
    settings = checker.fill(settings_class, tree, "task")
    if checker.problems:
        raise RecipeError("\n".join(problem.line() for problem in checker.problems))
    return {name: getattr(settings, name) for name in given}


def recipe_digest(recipe: Recipe, *, until: str | None = None) -> str:
    """Return a fingerprint of everything in a recipe that decides its result.

    The name, the device and the run folder are left out.

    Args:
        recipe: Any recipe.
        until: Name of a stage: later stages are left out too.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    plain = {k: v for k, v in plain_recipe(recipe).items() if k not in _DECIDES_NO_RESULT}
    names = list(plain["stages"])
    if until is not None:
        names = names[: names.index(until) + 1] if until in names else names
    plain["stages"] = {name: plain["stages"][name] for name in names}
    canonical = json.dumps(_one_zero(plain), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def default_recipe(*, schema: Schema = SCHEMA) -> Recipe:
    """Return the recipe of ``Compressor(model)``: any network, its own output as the target.

    Every setting has its default; the budget is half of the MACs.
    """
    task = TaskChoice(
        name=GENERIC_TASK,
        settings=schema.task_class(GENERIC_TASK).Settings(),
    )
    given: dict[str, dict[str, Any]] = {name: {} for name in _DEFAULT_STAGES}
    given["allocate"] = {"keep_macs": _DEFAULT_KEEP_MACS}
    types = schema.stage_types()
    stages = {name: types[name].Settings(**values) for name, values in given.items()}
    return Recipe(name="default", task=task, stages=schema.in_order(stages))


def _one_zero(value: Any) -> Any:
    """Return plain values in which 1.0 is 1, as they are equal."""
    if isinstance(value, dict):
        return {key: _one_zero(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_one_zero(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

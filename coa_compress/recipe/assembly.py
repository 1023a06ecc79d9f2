"""A tree of YAML values to a recipe, and a recipe back to plain values."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import PurePath
from typing import Any

from coa_compress.errors import CoaError, RegistryError
from coa_compress.recipe.checking import INVALID, Checker, shown
from coa_compress.recipe.document import Node
from coa_compress.recipe.overrides import is_switch
from coa_compress.recipe.schema import Recipe, Schema, TaskChoice
from coa_compress.registry import did_you_mean


def assemble(root: Node, schema: Schema, checker: Checker) -> Recipe | None:
    """Return the recipe that a tree describes, or None when something is wrong with it.

    Args:
        root: The whole document, overrides applied.
        schema: The stages and tasks that exist.
        checker: Collects what is wrong.
    """
    if root.value is not None and not isinstance(root.value, dict):
        checker.add(root.where, "", f"a recipe must be keys and values, got {shown(root)}")
        return None
    children = dict(root.value or {})
    made = {
        "task": _task(children.get("task"), root, schema, checker),
        "stages": _stages(children.get("stages"), root, schema, checker),
    }
    _point_inward(children, schema, checker)
    made |= checker.read(Recipe, Node(root.where, children), "", skip=("task", "stages"))
    if checker.problems:
        return None
    try:
        return Recipe(**made)
    except CoaError as error:
        checker.add(root.where, "", str(error))
        return None


def plain_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain values with every default written, in the shape of the YAML."""
    return {
        "name": recipe.name,
        "model": recipe.model,
        "weights": recipe.weights,
        "seed": recipe.seed,
        "device": recipe.device,
        "out": recipe.out,
        "task": {"name": recipe.task.name, **plain(recipe.task.settings)},
        "structure": plain(recipe.structure),
        "stages": {name: plain(settings) for name, settings in recipe.stages.items()},
    }


def plain(value: Any) -> Any:
    """Return settings as plain values with every default written: what JSON and YAML hold."""
    if is_dataclass(value):
        return {item.name: plain(getattr(value, item.name)) for item in fields(value) if item.init}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, PurePath) else value


def _task(node: Node | None, root: Node, schema: Schema, checker: Checker) -> Any:
    known = schema.tasks.names()
    if node is not None and isinstance(node.value, str):
        node = Node(node.where, {"name": node})  # "task: dehazing" is short for its name
    keys = node.value if node is not None and isinstance(node.value, dict) else {}
    where = node.where if node is not None else root.where
    name = keys.get("name")
    if name is None:
        checker.add(where, "task.name", f"is missing: known: {', '.join(known)}")
        return INVALID
    if not isinstance(name.value, str) or name.value not in known:
        text = f"unknown task {shown(name)}: {did_you_mean(str(name.value), known)}"
        checker.add(name.where, "task.name", text)
        return INVALID
    try:
        settings_class = schema.task_class(name.value).Settings
    except RegistryError as error:
        checker.add(name.where, "task.name", str(error))
        return INVALID
    settings = checker.fill(settings_class, Node(where, keys), "task", skip=("name",))
    return TaskChoice(name=name.value, settings=settings)


def _stages(node: Node | None, root: Node, schema: Schema, checker: Checker) -> Any:
    types = schema.stage_types()
    if node is None or not isinstance(node.value, dict):
        where = root.where if node is None else node.where
        text = f"must name the stages to run, each with its settings: known: {', '.join(types)}"
        checker.add(where, "stages", text)
        return INVALID
    made: dict[str, Any] = {}
    for name, child in node.value.items():
        if name not in types:
            text = f"unknown stage {name!r}: {did_you_mean(name, types)}"
            checker.add(child.where, "stages", text)
        elif not is_switch(child, on=False):
            settings = Node(child.where, None) if is_switch(child, on=True) else child
            made[name] = checker.fill(types[name].Settings, settings, f"stages.{name}")
    if not made and not checker.problems:
        checker.add(node.where, "stages", f"every stage is off: known: {', '.join(types)}")
    return schema.in_order(made)


def _point_inward(children: dict[str, Node], schema: Schema, checker: Checker) -> None:
    """Take out top-level keys that belong to a stage, each with a problem that says so."""
    own = {item.name for item in fields(Recipe)}
    for key in [key for key in children if key not in own]:
        homes = [f"stages.{name}" for name in schema.stage_types() if name == key]
        homes += [
            f"stages.{stage.name}.{key}"
            for stage in schema.stages
            if key in {item.name for item in fields(stage.Settings)}
        ]
        if homes:
            text = f"unknown key {key!r}: did you mean {' or '.join(homes)}?"
            checker.add(children.pop(key).where, "", text)

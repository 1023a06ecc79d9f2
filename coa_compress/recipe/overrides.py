"""Overrides of a recipe from the command line: ``a.b.c=value``."""

from collections.abc import Sequence
from dataclasses import dataclass

from coa_compress.errors import RecipeError
from coa_compress.recipe.document import Node, Problem, Where, parse_document

_AFTER_EVERY_LINE = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Override:
    """One value to replace or add.

    Args:
        text: Such as ``stages.allocate.keep_macs=0.2``; the value is YAML.
        where: Where it was given, for messages.
    """

    text: str
    where: Where


def apply_overrides(root: Node, overrides: Sequence[str]) -> tuple[Node, list[Problem]]:
    """Return the tree with some values replaced or added, and what is wrong with the overrides.

    Args:
        root: The tree of a recipe; it is not changed.
        overrides: Items such as ``stages.allocate.keep_macs=0.2``; the value is YAML. A later
            one wins over an earlier one.

    >>> tree, _ = parse_document("stages: {score: }", source="r.yaml")
    >>> apply_overrides(tree, ["stages.score.scorer=taylor", "seed=3"])[0].plain()
    {'stages': {'score': {'scorer': 'taylor'}}, 'seed': 3}
    """
    return apply_placed(root, of_command_line(overrides))


def of_command_line(items: Sequence[str]) -> list[Override]:
    """Return overrides that were given as ``--set``, in order.

    >>> of_command_line(["seed=3"])[0].where.label
    '--set seed=3'
    """
    return [
        Override(item, Where(_AFTER_EVERY_LINE + number, f"--set {item}"))
        for number, item in enumerate(items)
    ]


def apply_placed(root: Node, overrides: Sequence[Override]) -> tuple[Node, list[Problem]]:
    """Return what ``apply_overrides`` returns, for overrides that may come from anywhere."""
    problems: list[Problem] = []
    for override in overrides:
        try:
            keys, value, found = _split(override.text, override.where)
            root = _replaced(root, keys, value)
            problems += found
        except _OverrideError as error:
            problems.append(Problem(override.where, str(error)))
    return root, problems


class _OverrideError(ValueError):
    """One override cannot be used."""


def _split(item: str, where: Where) -> tuple[list[str], Node, list[Problem]]:
    path, equals, text = item.partition("=")
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        message = "must be KEY=VALUE, such as stages.allocate.keep_macs=0.2"
        raise _OverrideError(message)
    try:
        value, problems = parse_document(text, source="", override=where)
    except RecipeError as error:
        raise _OverrideError(str(error).removeprefix(f"{where.label}: ")) from None
    if value.value is None and keys[:-1] == ["stages"]:
        value = Node(where, "off")  # in a file null means the defaults, here nothing
    return keys, value, problems


def _replaced(node: Node, keys: Sequence[str], value: Node, done: tuple[str, ...] = ()) -> Node:
    if not keys:
        return value
    children: object = node.value
    if is_switch(node, on=True):
        children = {}
    elif done == ("task",) and isinstance(node.value, str):
        children = {"name": node}  # "task: dehazing" is short for its name
    if not isinstance(children, dict):
        message = f"{'.'.join(done)} is {_short(node)}, which has no keys"
        raise _OverrideError(message)
    key, *rest = keys
    child = children.get(key, Node(value.where, None))
    new = _replaced(child, rest, value, (*done, key))
    return Node(node.where, {**children, key: new})


def is_switch(node: Node, *, on: bool) -> bool:
    """Return whether a value in place of keys says "with defaults" (on) or "not at all" (off).

    >>> is_switch(Node(Where(1, "r.yaml:1"), "off"), on=False)
    True
    """
    if node.value is None:
        return on
    return node.value is on or node.value == ("on" if on else "off")


def _short(node: Node) -> str:
    return "a list" if isinstance(node.value, list) else repr(node.value)

"""A tree of YAML values against dataclasses: every problem is found, each with its line."""

import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from coa_compress.errors import CoaError
from coa_compress.recipe.document import Node, Problem, Where
from coa_compress.registry import did_you_mean

INVALID: Any = object()
"""Stands for a value that could not be made; the reason is among the problems."""

_BOUNDS = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "literal_error": "{expected}",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "keys and values",
    "mapping": "keys and values",
    "none": "null",
}


@dataclass(frozen=True, slots=True)
class Checker:
    """Makes dataclasses from nodes and collects what is wrong on the way.

    Args:
        problems: Everything found so far.

    >>> from dataclasses import dataclass
    >>> from coa_compress.recipe.document import parse_document
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Score:
    ...     scorer: str = "taylor"
    >>> checker = Checker()
    >>> checker.make(Score, parse_document("scorer: l1", source="r.yaml")[0], "stages.score")
    Score(scorer='l1')
    >>> _ = checker.make(Score, parse_document("scorr: 3", source="r.yaml")[0], "stages.score")
    >>> checker.problems[0].line()
    "r.yaml:1: stages.score: unknown key 'scorr': did you mean scorer? known: scorer"
    """

    problems: list[Problem] = field(default_factory=list)

    def add(self, where: Where, path: str, text: str) -> None:
        """Note a problem; the path is left out where an override has just said it."""
        said = not path or where.label.startswith((f"--set {path}=", f"--set {path}."))
        self.problems.append(Problem(where, text if said else f"{path}: {text}"))

    def make(self, hint: Any, node: Node, path: str, *, base: Any = None) -> Any:
        """Return the value of a node as the annotated type wants it, or ``INVALID``.

        Args:
            hint: A type annotation, with ``annotated_types`` bounds; dataclasses may be nested
                in ``X | None``, ``Mapping[str, X]`` and ``tuple[X, ...]``.
            node: What was written.
            path: Dotted keys that lead to the node, for messages.
            base: The value if nothing were written; a dataclass gives the keys not written.
        """
        if not _holds_dataclass(hint):
            return self._leaf(hint, node, path)
        hint = _without_metadata(hint)
        if get_origin(hint) in (Union, types.UnionType):
            inner = [part for part in get_args(hint) if part is not type(None)]
            return None if node.value is None else self.make(inner[0], node, path, base=base)
        if is_dataclass(hint):
            return self.fill(hint, node, path, base=base if type(base) is hint else None)
        return self._container(hint, node, path)

    def fill(
        self, cls: Any, node: Node, path: str, *, skip: Sequence[str] = (), base: Any = None
    ) -> Any:
        """Return an instance of a dataclass, or ``INVALID``.

        Args:
            cls: A dataclass.
            node: A mapping; null stands for no keys.
            path: Dotted keys that lead to the node.
            skip: Keys of the mapping that are somebody else's business.
            base: An instance that gives the keys not written, in place of the defaults of the
                class: a stage may have its own defaults for settings that it shares.
        """
        values = self.read(cls, node, path, skip=skip, base=base)
        if any(value is INVALID for value in values.values()):
            return INVALID
        try:
            return cls(**values)
        except (CoaError, ValueError) as error:
            self.add(node.where, path, str(error))
            return INVALID

    def read(
        self, cls: Any, node: Node, path: str, *, skip: Sequence[str] = (), base: Any = None
    ) -> dict[str, Any]:
        """Return the arguments of a dataclass, some of them perhaps ``INVALID``; see ``fill``."""
        children = {} if node.value is None else node.value
        if not isinstance(children, dict):
            self.add(node.where, path, f"must be keys and values, got {shown(node)}")
            return {"": INVALID}
        known = {item.name: item for item in fields(cls) if item.init and item.name not in skip}
        for key, child in children.items():
            if key not in known and key not in skip:
                text = f"unknown key {key!r}: {did_you_mean(key, [*known, *skip])}"
                self.add(child.where, path, text)
        defaults = {name: _default(item, base) for name, item in known.items()}
        return dict(self._values(get_type_hints(cls, include_extras=True), defaults, node, path))

    def _values(
        self, hints: Mapping[str, Any], defaults: Mapping[str, Any], node: Node, path: str
    ) -> Iterator[tuple[str, Any]]:
        children = node.value if isinstance(node.value, dict) else {}
        for name, default in defaults.items():
            inner = f"{path}.{name}" if path else name
            if name in children:
                yield name, self.make(hints[name], children[name], inner, base=default)
            elif default is MISSING:
                self.add(node.where, inner, "is missing: give a value")
                yield name, INVALID
            else:
                yield name, default

    def _container(self, hint: Any, node: Node, path: str) -> Any:
        inner = [part for part in get_args(hint) if part is not Ellipsis][-1]
        if issubclass(get_origin(hint), Mapping):
            if not isinstance(node.value, dict):
                self.add(node.where, path, f"must be keys and values, got {shown(node)}")
                return INVALID
            made = {k: self.make(inner, child, f"{path}.{k}") for k, child in node.value.items()}
            return INVALID if any(item is INVALID for item in made.values()) else made
        if not isinstance(node.value, list):
            self.add(node.where, path, f"must be a list, got {shown(node)}")
            return INVALID
        items = [self.make(inner, child, f"{path}[{i}]") for i, child in enumerate(node.value)]
        return INVALID if any(item is INVALID for item in items) else get_origin(hint)(items)

    def _leaf(self, hint: Any, node: Node, path: str) -> Any:
        # JSON is the strict mode that still takes a list for a tuple and text for a path
        try:
            return TypeAdapter(hint).validate_json(json.dumps(node.plain()), strict=True)
        except ValidationError as error:
            by_place: dict[str, tuple[Node, list[ErrorDetails]]] = {}
            for detail in error.errors(include_url=False):
                place, culprit = _find(node, path, detail["loc"])
                by_place.setdefault(place, (culprit, []))[1].append(detail)
            for place, (culprit, details) in by_place.items():
                self.add(culprit.where, place, _sentence(details, culprit))
            return INVALID


def shown(node: Node) -> str:
    """Return a short text of a value for messages.

    >>> from coa_compress.recipe.document import Where
    >>> shown(Node(Where(1, "r.yaml:1"), "3"))
    "'3'"
    """
    if isinstance(node.value, dict):
        return "keys and values"
    if isinstance(node.value, list):
        return f"a list of {len(node.value)}"
    if isinstance(node.value, str):
        return repr(node.value if len(node.value) <= 60 else node.value[:57] + "...")
    return json.dumps(node.value)[:60]


def _default(item: Field[Any], base: Any) -> Any:
    if base is not None:
        return getattr(base, item.name)
    return item.default if item.default_factory is MISSING else item.default_factory()


def _holds_dataclass(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]  # bounds are dataclasses too
    return is_dataclass(hint) or any(_holds_dataclass(part) for part in get_args(hint))


def _without_metadata(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _find(node: Node, path: str, loc: Sequence[int | str]) -> tuple[str, Node]:
    for key in loc:  # names of union members are no part of the tree: skipped
        if isinstance(node.value, dict) and key in node.value:
            node, path = node.value[str(key)], f"{path}.{key}"
        elif isinstance(node.value, list) and isinstance(key, int) and key < len(node.value):
            node, path = node.value[key], f"{path}[{key}]"
    return path, node


def _sentence(details: Sequence[ErrorDetails], node: Node) -> str:
    first = details[0]
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if len(details) == 1 and first["type"] == "literal_error" and isinstance(node.value, str):
        choices = first["ctx"]["expected"].split("'")[1::2]
        return f"unknown value {node.value!r}: {did_you_mean(node.value, choices)}"
    if details[-1]["type"] == "missing":
        return f"must be a list of {int(details[-1]['loc'][-1]) + 1}, got {shown(node)}"
    wanted = " or ".join(dict.fromkeys(_wanted(detail) for detail in details))
    return f"must be {wanted}, got {shown(node)}"


def _wanted(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(**detail["ctx"])
    word = _KINDS.get(kind.removesuffix("_type").removesuffix("_parsing").removesuffix("_required"))
    return word or detail["msg"].removeprefix("Input should be ")

"""YAML text as a tree that knows the line of every key; no tag is obeyed, no object is made."""

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from coa_compress.errors import RecipeError

Scalar = str | int | float | bool | None
"""What a single YAML value can be."""

_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_RULES = (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)
_MOST_DIGITS = 400
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True, order=True)
class Where:
    """Where a value was written.

    Args:
        rank: For sorting: the line, or a number above every line for an override.
        label: How a person finds it, such as ``recipes/x.yaml:12`` or ``--set seed=1``.
    """

    rank: int
    label: str


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a recipe.

    Args:
        where: The line of its key, or of itself in a list.
        value: A scalar, a list of nodes, or nodes by key.
    """

    where: Where
    value: "Scalar | list[Node] | dict[str, Node]"

    def plain(self) -> Any:
        """Return the value without positions.

        >>> parse_document("a: [1, x]", source="r.yaml")[0].plain()
        {'a': [1, 'x']}
        """
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong with a recipe.

    Args:
        where: Where it was written.
        text: What is wrong, the value and the remedy, after the position.
    """

    where: Where
    text: str

    def line(self) -> str:
        """Return the line that a person reads."""
        return f"{self.where.label}: {self.text}"


class _Loader(yaml.SafeLoader):
    """A loader of plain values by the YAML 1.2 rules: ``1e-3`` is a number, ``no`` is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class wants exactly this

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        remedy = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            remedy = "anchors and aliases (& and *) are not allowed: write the value, or quote it"
        elif getattr(event, "tag", None) is not None:
            remedy = f"the tag {event.tag!r} is not allowed: write a plain value, or quote it"
        if remedy is not None:
            raise yaml.MarkedYAMLError(problem=remedy, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """A dumper that quotes every text that either YAML 1.1 or 1.2 would read as something else."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # only double quotes keep the line breaks that are not "\n" apart from spaces
        style = None if data.isprintable() else '"'
        return self.represent_scalar(f"{_TAG}str", data, style=style)


for _name, _pattern, _first in _RULES:
    _whole = re.compile(rf"^(?:{_pattern.pattern})$")
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, _whole, _first)
_Dumper.add_representer(str, _Dumper.represent_str)


@dataclass(frozen=True, slots=True)
class _Reader:
    source: str
    fixed: Where | None
    problems: list[Problem] = field(default_factory=list)

    def read(self, node: yaml.Node, where: Where) -> Node:
        if isinstance(node, yaml.MappingNode):
            return Node(where, self._mapping(node))
        if isinstance(node, yaml.SequenceNode):
            return Node(where, [self.read(item, self.where(item)) for item in node.value])
        return Node(where, _scalar(node))

    def where(self, node: yaml.Node) -> Where:
        line = node.start_mark.line + 1
        return self.fixed or Where(line, f"{self.source}:{line}")

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        for key_node, value_node in node.value:
            where = self.where(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(where, "a key must be a plain word"))
            elif key_node.value in nodes:
                first = nodes[key_node.value].where.label
                text = f"key {key_node.value!r} is given twice, first at {first}: remove one"
                self.problems.append(Problem(where, text))
            else:
                nodes[key_node.value] = self.read(value_node, where)
        return nodes


def parse_document(
    text: str, *, source: str, override: Where | None = None
) -> tuple[Node, list[Problem]]:
    """Return the tree of a YAML text and what is wrong with its keys.

    Args:
        text: One YAML document.
        source: Name of the file, for messages.
        override: The place that everything comes from, when the text is not a file.

    Raises:
        RecipeError: If it is not YAML, or uses tags, anchors or aliases; one line with position.

    >>> parse_document("a: [", source="r.yaml")
    Traceback (most recent call last):
    coa_compress.errors.RecipeError: r.yaml:1:5: not valid YAML: expected the node content, but ...
    """
    label = override.label if override else source
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = _place(label, before.count("\n"), len(before) - before.rfind("\n") - 1, override)
        message = f"{place}: character {error.character!r} is not allowed in YAML: remove it"
        raise RecipeError(message) from None
    except yaml.MarkedYAMLError as error:
        raise RecipeError(_syntax_message(error, label, override)) from None
    except RecursionError:
        message = f"{label}: brackets are nested too deep: a recipe has only a few levels"
        raise RecipeError(message) from None
    reader = _Reader(source, override)
    start = override or Where(1, f"{source}:1")
    tree = Node(start, None) if root is None else reader.read(root, start)
    return tree, reader.problems


def write_document(value: Any) -> str:
    """Return plain values as YAML text that ``parse_document`` reads back unchanged.

    >>> print(write_document({"name": "1e-3", "keep": 0.001, "on": ["a"], "none": None}))
    name: '1e-3'
    keep: 0.001
    'on':
    - a
    none: null
    <BLANKLINE>
    """
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf")
    )
    return text


def _scalar(node: yaml.Node) -> Scalar:
    text = str(node.value)
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int" if len(text) <= _MOST_DIGITS:
            return int(text)
        case "float":
            sign, digits = (-1.0, text[1:]) if text.startswith("-") else (1.0, text.lstrip("+"))
            return sign * float(digits.removeprefix(".") if digits[1:2].isalpha() else digits)
    return text


def _place(label: str, line: int, column: int, override: Where | None) -> str:
    return label if override else f"{label}:{line + 1}:{column + 1}"


def _syntax_message(error: yaml.MarkedYAMLError, label: str, override: Where | None) -> str:
    mark = error.problem_mark or error.context_mark
    place = _place(label, mark.line, mark.column, override) if mark else label
    problem = " ".join(str(error.problem or error.context).split())
    if "\\t" in problem:
        problem += ": indent with spaces, not tabs"
    if "allowed:" in problem:
        return f"{place}: {problem}"
    hint = ": quote the value" if override else ""
    return f"{place}: not valid YAML: {problem}{hint}"

"""Ablation files: a recipe, and variants of it that differ in an override or two."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from coa_compress.errors import RecipeError
from coa_compress.recipe.assembly import assemble
from coa_compress.recipe.checking import INVALID, Checker
from coa_compress.recipe.document import Node, Problem, Where, parse_document
from coa_compress.recipe.files import SCHEMA, read_text, recipe_digest
from coa_compress.recipe.overrides import Override, apply_placed, of_command_line
from coa_compress.recipe.schema import Name, Recipe, Schema
from coa_compress.recipe.shipped import locate
from coa_compress.registry import did_you_mean

Better = Literal["higher", "lower"]
"""Which way a measure improves."""

_BEHIND_THE_RECIPE = 1_000_000
_GIVEN_BY_THE_COMMAND = ("seed", "name", "out", "device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One recipe of an ablation.

    Args:
        name: What it is called.
        overrides: In which it differs from the recipe of the ablation.
        recipe: The whole.
    """

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """A recipe and its variants.

    Args:
        name: Letters, digits, dots, dashes and underscores.
        recipe: Path of the recipe.
        reference: Name of the variant that the others are compared with.
        measures: Which way each measure improves that is shown; empty for all, either way.
        settings: Overrides of every variant.
        variants: What is run, in order.
        out: The folder of all runs.
    """

    name: str
    recipe: str
    reference: str
    measures: Mapping[str, Better]
    settings: tuple[str, ...]
    variants: tuple[Variant, ...]
    out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationFile:
    """What may stand in an ablation file.

    Args:
        recipe: Path of the recipe, from the folder of the ablation file.
        variants: Overrides of each variant, as after ``--set``.
        name: Letters, digits, dots, dashes and underscores.
        reference: Name of the variant that the others are compared with.
        settings: Overrides of every variant; those of the variant win.
        measures: Measures of the task that are shown, and which way each improves.
        out: The folder of all runs; empty for ``runs/<name>``.
    """

    recipe: str
    variants: Mapping[Name, tuple[str, ...] | None]
    name: Name = "ablation"
    reference: str = "full"
    settings: tuple[str, ...] = ()
    measures: Mapping[str, Better] = field(default_factory=dict)
    out: str = ""


def load_ablation(
    path: Path | str,
    overrides: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    schema: Schema = SCHEMA,
) -> Ablation:
    """Return the ablation of a file.

    Args:
        path: A YAML file, UTF-8, or the name of one that comes along; its keys are those of
            ``AblationFile``.
        overrides: Overrides of every variant; they win over the files, and a variant's own win
            over them.
        only: Names of variants; the reference is always among them. Empty for all.
        schema: The stages and tasks that exist.

    Raises:
        RecipeError: If a file cannot be read, or anything in it or in the overrides is wrong, or a
            variant is no different from the reference: one line for each problem, each with file
            and line.

    >>> load_ablation("none.yaml")
    Traceback (most recent call last):
    coa_compress.errors.RecipeError: no ablation file none.yaml: give the path of a YAML file
    """
    path = locate(path, "ablation")
    root, problems = parse_document(read_text(path, "ablation"), source=str(path))
    root = _behind_the_recipe(root)
    checker = Checker([Problem(_behind(one.where), one.text) for one in problems])
    read = checker.fill(AblationFile, root, "")
    if read is INVALID:
        raise _error(checker.problems)
    file: AblationFile = read
    _check_names(file, root, only, checker)
    if checker.problems:
        raise _error(checker.problems)
    reader = _Reader(path, file, root, tuple(overrides), schema)
    names = [name for name in file.variants if not only or name in (*only, file.reference)]
    return Ablation(
        name=file.name,
        recipe=str(reader.recipe_path()),
        reference=file.reference,
        measures=file.measures,
        settings=(*file.settings, *overrides),
        variants=reader.variants(names),
        out=file.out or f"runs/{file.name}",
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """An ablation file that is well formed, and what its variants are made of."""

    path: Path
    file: AblationFile
    root: Node
    overrides: tuple[str, ...]
    schema: Schema

    def recipe_path(self) -> Path:
        return self.path.parent / self.file.recipe

    def variants(self, names: Sequence[str]) -> tuple[Variant, ...]:
        recipe_path = self.recipe_path()
        text = read_text(recipe_path, "recipe")
        tree, problems = parse_document(text, source=str(recipe_path))
        shared = [*self._placed("settings"), *of_command_line(self.overrides)]
        made: dict[str, Recipe] = {}
        for name in names:
            own = self._placed("variants", name)
            whole, more = apply_placed(tree, [*shared, *own])
            checker = Checker([*problems, *more, *_reserved(own)])
            recipe = assemble(whole, self.schema, checker)
            problems = checker.problems if recipe is None else problems
            if recipe is not None:
                made[name] = recipe
        if problems:
            raise _error(problems)
        self._check_effect(made)
        return tuple(
            Variant(name=name, overrides=self.file.variants[name] or (), recipe=recipe)
            for name, recipe in made.items()
        )

    def _placed(self, *keys: str) -> list[Override]:
        node = self.root
        for key in keys:
            node = _child(node, key)
        items = node.value if isinstance(node.value, list) else []
        return [Override(str(item.value), item.where) for item in items]

    def _check_effect(self, made: Mapping[str, Recipe]) -> None:
        seen: dict[str, str] = {}
        same = []
        for name in (self.file.reference, *made):
            first = seen.setdefault(recipe_digest(made[name]), name)
            if first != name:
                where = _child(_child(self.root, "variants"), name).where
                text = f"variant {name!r} is the same as {first!r}: change something, or remove it"
                same.append(Problem(where, text))
        if same:
            raise _error(same)


def _check_names(file: AblationFile, root: Node, only: Sequence[str], checker: Checker) -> None:
    variants = _child(root, "variants")
    if file.reference not in file.variants:
        node = _child(root, "reference")
        where = node.where if node.value is not None else variants.where
        text = f"no variant {file.reference!r}: {did_you_mean(file.reference, file.variants)}"
        checker.add(where, "reference", text)
    for name in only:
        if name not in file.variants:
            where = Where(2 * _BEHIND_THE_RECIPE, f"--only {name}")
            checker.add(where, "", f"no such variant: {did_you_mean(name, file.variants)}")


def _reserved(overrides: Sequence[Override]) -> Iterator[Problem]:
    for override in overrides:
        key = override.text.partition("=")[0].strip()
        if key in _GIVEN_BY_THE_COMMAND:
            text = f"{key} is the same for all variants: give it on the command line"
            yield Problem(override.where, text)


def _child(node: Node, key: str) -> Node:
    children = node.value if isinstance(node.value, dict) else {}
    return children.get(key, Node(node.where, None))


def _behind(where: Where) -> Where:
    """Return the same place, sorted behind the lines of another file."""
    return replace(where, rank=where.rank + _BEHIND_THE_RECIPE)


def _behind_the_recipe(node: Node) -> Node:
    where, value = _behind(node.where), node.value
    if isinstance(value, dict):
        return Node(where, {key: _behind_the_recipe(child) for key, child in value.items()})
    if isinstance(value, list):
        return Node(where, [_behind_the_recipe(child) for child in value])
    return Node(where, value)


def _error(problems: Sequence[Problem]) -> RecipeError:
    return RecipeError("\n".join(problem.line() for problem in sorted(set(problems))))

"""The recipes that come along and what a recipe may name, with a word on each."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from coa_compress.registry import Registry


def recipes() -> list[str]:
    """Return a line for each recipe that comes along, and one that says where they are."""
    from coa_compress.recipe.shipped import shipped_recipes

    shipped = shipped_recipes()
    first = {
        name: path.read_text(encoding="utf-8").splitlines()[0] for name, path in shipped.items()
    }
    folders = dict.fromkeys(str(path.parent) for path in shipped.values())
    return [
        *_columns((name, line.lstrip("# ")) for name, line in first.items()),
        *(f"in {folder}: copy one to change it" for folder in folders),
    ]


def scorers() -> list[str]:
    """Return a line for each scorer."""
    from coa_compress.scoring.catalog import SCORERS

    return _registered(SCORERS)


def allocators() -> list[str]:
    """Return a line for each allocator."""
    from coa_compress.allocation.catalog import ALLOCATORS

    return _registered(ALLOCATORS)


def tasks() -> list[str]:
    """Return a line for each task."""
    from coa_compress.recipe.files import SCHEMA

    return described((name, SCHEMA.task_class(name)) for name in SCHEMA.tasks.names())


def stages() -> list[str]:
    """Return a line for each stage, in the order of the data."""
    from coa_compress.stages.order import STAGES

    return described((stage.name, stage) for stage in STAGES)


def losses() -> list[str]:
    """Return a line for each task: the losses it names, and its priors on real images."""
    from coa_compress.protocols import Adaptable
    from coa_compress.recipe.files import SCHEMA

    lines: list[str] = []
    for name in SCHEMA.tasks.names():
        task_class = SCHEMA.task_class(name)
        task = task_class(task_class.Settings())
        lines.append(f"{name}: {', '.join(task.losses)}")
        if isinstance(task, Adaptable):
            lines.append(f"{name}, on real images: {', '.join(task.guidance)}")
    return lines


def features() -> list[str]:
    """Return a line for each feature term of the distillation."""
    from coa_compress.distillation.features import FEATURE_TERMS

    return _registered(FEATURE_TERMS)


def described(things: Iterable[tuple[str, Any]]) -> list[str]:
    """Return a name and the first line of its docstring for each thing.

    >>> described([("taylor", described)])
    ['taylor  Return a name and the first line of its docstring for each thing.']
    """
    return _columns(
        (name, (thing.__doc__ or "").strip().partition("\n")[0]) for name, thing in things
    )


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    pairs = list(rows)
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{name:{width}}  {text}".rstrip() for name, text in pairs]


def _registered(registry: Registry[Any]) -> list[str]:
    return described((name, registry.get(name)) for name in registry.names())


CATALOG: Mapping[str, Callable[[], list[str]]] = {
    "recipes": recipes,
    "scorers": scorers,
    "allocators": allocators,
    "tasks": tasks,
    "stages": stages,
    "losses": losses,
    "features": features,
}
"""How to list each kind."""

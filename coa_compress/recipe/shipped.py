"""Recipes that come along, found by name wherever the package is installed."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from coa_compress.errors import RecipeError
from coa_compress.registry import did_you_mean

_CHECKOUT = Path(__file__).resolve().parents[2]
_INSTALLED = "share/coa-compress/recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return the file of every recipe that comes along, by name, sorted.

    >>> shipped_recipes()["dehaze"].name
    'dehaze.yaml'
    """
    if (_CHECKOUT / "setup.cfg").is_file():
        found = [*(_CHECKOUT / "recipes").glob("*.yaml")]
    else:
        found = _installed_files()
    return {path.stem: path for path in sorted(found)}


def locate(given: Path | str, kind: str) -> Path:
    """Return the file that is meant by a path, or by the name of a recipe that comes along.

    Args:
        given: A path; without folder and suffix, and where no such file is, it is a name.
        kind: What the file is, for messages.

    Raises:
        RecipeError: If it is a name, and no recipe that comes along has it.

    >>> locate("dehaze", "recipe").name
    'dehaze.yaml'
    >>> str(locate("mine/dehaze.yaml", "recipe"))
    'mine/dehaze.yaml'
    """
    path = Path(given)
    if path.suffix or len(path.parts) != 1 or path.is_file():
        return path
    shipped = shipped_recipes()
    if path.name not in shipped:
        hint = did_you_mean(path.name, shipped)
        message = f"no {kind} file {path}, and none of this name comes along: {hint}"
        raise RecipeError(message)
    return shipped[path.name]


def _installed_files() -> list[Path]:
    try:
        listed = files("coa-compress") or []
    except PackageNotFoundError:
        return []
    return [
        Path(str(file.locate())).resolve()
        for file in listed
        if file.suffix == ".yaml" and file.parent.as_posix().endswith(_INSTALLED)
    ]

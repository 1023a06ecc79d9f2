"""What every task with folders of images asks of them."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from coa_compress.errors import DataError, SettingError
from coa_compress.tasks.images import list_images

T = TypeVar("T")

BUILTIN = "builtin"
"""What a folder setting calls the images that come along."""

_MOST_NAMED = 4


def locations(setting: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the places that a folder setting names, in order, without empty ones.

    Raises:
        SettingError: If it names none.

    >>> locations("data/a, data/b")
    ('data/a', 'data/b')
    """
    parts = setting.split(",") if isinstance(setting, str) else setting
    named = tuple(part.strip() for part in parts if part.strip())
    if not named:
        message = f"no folder in {setting!r}: name a folder or use {BUILTIN}"
        raise SettingError(message)
    return named


def subfolders(path: Path) -> dict[str, Path]:
    """Return the folders directly in a folder by name in lower case, hidden ones left out."""
    return {
        folder.name.lower(): folder
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder, or where there is none, those in the folders in it."""
    parts = subfolders(folder).values()
    return list_images(folder) or [image for part in parts for image in list_images(part)]


def shorter_names(stem: str) -> Iterator[str]:
    """Return a name, and what is left when its last words are taken away, one by one.

    RESIDE appends the haze level to the name of the scene.

    >>> list(shorter_names("0011_0.95_0.16"))
    ['0011_0.95_0.16', '0011_0.95', '0011']
    """
    yield stem
    while "_" in stem:
        stem = stem.rsplit("_", 1)[0]
        yield stem


def seen(path: Path) -> str:
    """Return in a few words what is in a folder."""
    entries = [entry for entry in sorted(path.iterdir()) if not entry.name.startswith(".")]
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries]
    if not names:
        return "nothing"
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def stamp(path: Path) -> str:
    """Return path, size and time of change of a file, which is not opened.

    Raises:
        DataError: If the file is gone.
    """
    try:
        found = path.stat()
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}: put it back or run again"
        raise DataError(message) from None
    return f"{str(path)!r} {found.st_size} {found.st_mtime_ns}"


def digest_of_lines(lines: Iterable[str]) -> list[str]:
    """Return a digest of what was read, 16 hexadecimal digits, or nothing where nothing was.

    >>> digest_of_lines([])
    []
    """
    given = list(lines)
    if not given:
        return []
    digest = hashlib.sha256(f"{len(given)}\n".encode())
    for line in given:
        digest.update(f"{line}\n".encode())
    return [digest.hexdigest()[:16]]


def name_digest(name: str) -> int:
    """Return a number of 60 bits that depends on nothing but the name.

    >>> name_digest("a") == name_digest("a"), name_digest("a") == name_digest("b")
    (True, False)
    """
    return int(hashlib.sha256(name.encode()).hexdigest()[:15], 16)


def spaced(items: Sequence[T], limit: int | None) -> Sequence[T]:
    """Return at most ``limit`` items, evenly spaced.

    >>> spaced([0, 1, 2, 3, 4, 5], 3)
    [0, 2, 4]
    """
    if limit is None or len(items) <= limit:
        return items
    return [items[len(items) * i // limit] for i in range(limit)]

"""Run folders: one process at a time, stages that are done, and nothing else overwritten."""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from coa_compress.atomic import sync_folder, write_atomic
from coa_compress.errors import RunError

_LOCK = ".lock"
_TRASH = ".trash-"
_NEW = ".new-"
_BEGUN = "stage.json"
_DONE = "done.json"
MARK = {"tool": "coa-compress", "format": 1}
"""What the file that marks a folder as ours holds, among others."""
_STAGE = re.compile(r"\d\d_\w[\w.-]*", re.ASCII)


def digest_of(*parts: object) -> str:
    """Return an identity of JSON values: the same for the same values, on every machine.

    Args:
        parts: JSON values; the order of keys does not matter.

    Returns:
        16 hexadecimal digits.

    Raises:
        RunError: If a part is not a JSON value.

    >>> digest_of("distill", {"steps": 10, "seed": 0}) == digest_of(
    ...     "distill", {"seed": 0, "steps": 10}
    ... )
    True
    """
    try:
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        message = f"cannot identify a stage by {parts!r}: {error}: use JSON values"
        raise RunError(message) from None
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one run, with a folder for each stage that says what for and if it is done.

    A stage goes ``begin``, write files, ``mark_done``. Killed at any point, the next run finds
    either a stage that is done, or one that is not and may hold partial results of the same
    digest. Made by ``open_run``.

    Args:
        path: The folder, absolute.
    """

    path: Path

    def stage_folder(self, index: int, name: str) -> Path:
        """Return where a stage keeps its files; it exists once ``begin`` was called.

        Args:
            index: Position of the stage, from 0 to 99.
            name: Name of the stage: letters, digits, ``_``, ``-`` and ``.``.

        >>> RunFolder(Path("/runs/a")).stage_folder(2, "distill").name
        '02_distill'
        """
        return self._folder(f"{index:02d}_{name}")

    def is_done(self, stage: str | Path, digest: str) -> bool:
        """Return whether a stage is done for exactly this digest.

        Args:
            stage: The folder that ``stage_folder`` returned, or its name.
            digest: Identifies everything that the stage depends on.
        """
        return is_finished(self._folder(stage), digest)

    def digest(self, stage: str | Path) -> str | None:
        """Return what a stage is done for, or None if it is not done."""
        found = _read(self._folder(stage) / _DONE).get("digest")
        return None if found is None else str(found)

    def begin(self, stage: str | Path, digest: str) -> Path:
        """Make the folder of a stage ready, and return it.

        What is there of another digest is removed; partial results of the same digest stay, and
        the stage counts as not done until ``mark_done``.

        Args:
            stage: The folder that ``stage_folder`` returned, or its name.
            digest: Identifies everything that the stage depends on.

        Raises:
            RunError: If the folder was not made by a run.
        """
        folder = self._folder(stage)
        if self._begun(folder) == digest:
            with suppress(FileNotFoundError):
                (folder / _DONE).unlink()
            sync_folder(folder)
            return folder
        new = _new_folder(self.path)
        write_atomic(new / _BEGUN, json.dumps({"digest": digest}))
        return self._placed(new, folder)

    def adopt(self, stage: str | Path, finished: Path) -> Path:
        """Make a stage done by the files of the same stage that was finished elsewhere.

        Args:
            stage: The folder that ``stage_folder`` returned, or its name; what is there goes.
            finished: A folder in which a stage is done; it is unchanged.

        Raises:
            RunError: If the folder was not made by a run.
        """
        folder = self._folder(stage)
        self._begun(folder)
        new = _new_folder(self.path)
        link_files(finished, new)
        return self._placed(new, folder)

    def mark_done(
        self, stage: str | Path, digest: str, seconds: float, *, warnings: Sequence[str] = ()
    ) -> None:
        """Record that a stage is done; to be called after its files are on disk.

        Args:
            stage: The folder that ``stage_folder`` returned, or its name.
            digest: What ``begin`` was given.
            seconds: How long it took.
            warnings: What it warned of.

        Raises:
            RunError: If the stage was not begun with this digest.
        """
        folder = self._folder(stage)
        if _read(folder / _BEGUN).get("digest") != digest:
            message = f"stage {folder.name} was not begun with digest {digest}: call begin first"
            raise RunError(message)
        done = {"digest": digest, "seconds": seconds, "warnings": list(warnings)}
        write_atomic(folder / _DONE, json.dumps(done))

    def seconds(self, stage: str | Path) -> float:
        """Return how long a stage took when it was done.

        Raises:
            RunError: If it is not done.
        """
        return float(self._done(stage)["seconds"])

    def warnings(self, stage: str | Path) -> tuple[str, ...]:
        """Return what a stage warned of when it was done.

        Raises:
            RunError: If it is not done.
        """
        return tuple(self._done(stage).get("warnings", ()))  # older runs recorded none

    def reset(self) -> None:
        """Remove the folders of all stages, and nothing that a run did not make."""
        for folder in sorted(self.path.iterdir()):
            if _STAGE.fullmatch(folder.name) and _read(folder / _BEGUN):
                self._discard(folder)

    def _folder(self, stage: str | Path) -> Path:
        folder = self.path / stage
        if folder.parent != self.path or _STAGE.fullmatch(folder.name) is None:
            message = f"{str(stage)!r} is no stage of {self.path}: use what stage_folder returns"
            raise RunError(message)
        return folder

    def _done(self, stage: str | Path) -> dict[str, Any]:
        folder = self._folder(stage)
        done = _read(folder / _DONE)
        if "seconds" not in done:
            message = f"stage {folder.name} of {self.path} is not done: it has no record yet"
            raise RunError(message)
        return done

    def _begun(self, folder: Path) -> str | None:
        """Return what a stage was begun for; None if nothing is there."""
        if not folder.exists() or not any(folder.iterdir()):
            return None
        begun = _read(folder / _BEGUN)
        if not begun:
            message = f"{folder} was not made by this run: move it away or use another folder"
            raise RunError(message)
        return str(begun.get("digest"))

    def _placed(self, new: Path, folder: Path) -> Path:
        if folder.exists() and any(folder.iterdir()):
            self._discard(folder)
        new.replace(folder)
        sync_folder(self.path)
        return folder

    def _discard(self, folder: Path) -> None:
        # renamed first: a folder that is half removed must never look like a stage
        trash = self.path / f"{_TRASH}{secrets.token_hex(4)}"
        folder.replace(trash)
        sync_folder(self.path)
        _remove(trash)


@contextmanager
def open_run(path: Path) -> Iterator[RunFolder]:
    """Open a run folder for this process alone; a new one is made when there is none.

    Args:
        path: A run folder, an empty folder, or one to be made.

    Yields:
        The folder; no other process can open it until the block ends or the process dies.

    Raises:
        RunError: If another process has it open, it holds something else, or cannot be written.
    """
    with own_folder(path, "run") as folder:
        yield RunFolder(folder)


@contextmanager
def own_folder(path: Path, kind: str, *, wait: bool = False) -> Iterator[Path]:
    """Open a folder of this program for this process alone; a new one is made when there is none.

    Args:
        path: A folder of that kind, an empty folder, or one to be made.
        kind: What the folder is, one word; ``KIND.json`` in it says so, with the key ``tool``.
        wait: Wait while another process has it open, in place of an error.

    Yields:
        The folder, absolute, without what killed processes have left half done.

    Raises:
        RunError: If another process has it open, it holds something else, or cannot be written.
    """
    path = Path(path).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        _check_ours(path, kind)
        held = FileLock(path / _LOCK, timeout=-1 if wait else 0).acquire()
    except Timeout:
        message = f"{path} is in use by another {kind}: wait until it ends or use another folder"
        raise RunError(message) from None
    except OSError as error:
        message = f"cannot use {path} as a {kind} folder: {error.strerror or error}"
        raise RunError(message) from None
    with held:
        if not (path / f"{kind}.json").exists():
            write_atomic(path / f"{kind}.json", json.dumps(MARK))
        for leftover in [*path.glob(f"{_TRASH}*"), *path.glob(f"{_NEW}*")]:
            _remove(leftover)
        yield path


def is_finished(folder: Path, digest: str) -> bool:
    """Return whether a folder holds a stage that is done for exactly this digest."""
    begun, done = _read(folder / _BEGUN), _read(folder / _DONE)
    return begun.get("digest") == digest and done.get("digest") == digest


def link_files(source: Path, target: Path) -> None:
    """Give every file below a folder a second name below another one, or copy it.

    Files of a run are replaced, never written into, so that one file may have several names.

    Args:
        source: A folder; files whose names begin with a dot are left out.
        target: A folder; the folders below it are made.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomic(Path(folder) / "a" / "b" / "x.txt", "text")
    ...     link_files(Path(folder) / "a", Path(folder) / "c")
    ...     (Path(folder) / "c" / "b" / "x.txt").read_text()
    'text'
    """
    for file in sorted(source.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, place)
            except OSError:  # another disk, or one without links
                write_atomic(place, file.read_bytes())
    sync_folder(target)


def _new_folder(path: Path) -> Path:
    new = path / f"{_NEW}{secrets.token_hex(4)}"
    new.mkdir()
    return new


def _check_ours(path: Path, kind: str) -> None:
    marker = path / f"{kind}.json"
    if marker.exists():
        if _read(marker).get("tool") == MARK["tool"]:
            return
        reason = f"its {marker.name} is not of {MARK['tool']}"
    else:
        # a run that was killed at once may leave a lock and a part of the marker
        ours = (_LOCK, f".{marker.name}.")
        others = sorted(p.name for p in path.iterdir() if not p.name.startswith(ours))
        if not others:
            return
        reason = f"it holds {others[0]!r} and no {marker.name}"
    message = f"{path} is no {kind} folder ({reason}): nothing was changed, use an empty folder"
    raise RunError(message)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)

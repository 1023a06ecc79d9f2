"""Run folders: one process at a time, stages that are done, and nothing else overwritten."""

import fcntl
import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coa_compress.atomic import sync_folder, write_atomic
from coa_compress.errors import RunError

_MARKER = "run.json"
_LOCK = ".lock"
_TRASH = ".trash-"
_NEW = ".new-"
_BEGUN = "stage.json"
_DONE = "done.json"
_TOOL = "coa-compress"
_FORMAT = 1
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
        folder = self._folder(stage)
        begun, done = _read(folder / _BEGUN), _read(folder / _DONE)
        return begun.get("digest") == digest and done.get("digest") == digest

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
        if folder.exists() and any(folder.iterdir()):
            begun = _read(folder / _BEGUN)
            if not begun:
                message = f"{folder} was not made by this run: move it away or use another folder"
                raise RunError(message)
            if begun.get("digest") == digest:
                with suppress(FileNotFoundError):
                    (folder / _DONE).unlink()
                sync_folder(folder)
                return folder
            self._discard(folder)
        new = self.path / f"{_NEW}{secrets.token_hex(4)}"
        new.mkdir()
        write_atomic(new / _BEGUN, json.dumps({"digest": digest}))
        new.replace(folder)
        sync_folder(self.path)
        return folder

    def mark_done(self, stage: str | Path, digest: str, seconds: float) -> None:
        """Record that a stage is done; to be called after its files are on disk.

        Args:
            stage: The folder that ``stage_folder`` returned, or its name.
            digest: What ``begin`` was given.
            seconds: How long it took.

        Raises:
            RunError: If the stage was not begun with this digest.
        """
        folder = self._folder(stage)
        if _read(folder / _BEGUN).get("digest") != digest:
            message = f"stage {folder.name} was not begun with digest {digest}: call begin first"
            raise RunError(message)
        write_atomic(folder / _DONE, json.dumps({"digest": digest, "seconds": seconds}))

    def seconds(self, stage: str | Path) -> float:
        """Return how long a stage took when it was done.

        Raises:
            RunError: If it is not done.
        """
        folder = self._folder(stage)
        done = _read(folder / _DONE)
        if "seconds" not in done:
            message = f"stage {folder.name} of {self.path} is not done: it has no duration yet"
            raise RunError(message)
        return float(done["seconds"])

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
    path = Path(path).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        _check_ours(path)
        lock = (path / _LOCK).open("a")
    except OSError as error:
        message = f"cannot use {path} as a run folder: {error.strerror or error}"
        raise RunError(message) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"{path} is in use by another run: wait until it ends or use another folder"
            raise RunError(message) from None
        if not (path / _MARKER).exists():
            _mark(path)
        for leftover in [*path.glob(f"{_TRASH}*"), *path.glob(f"{_NEW}*")]:
            _remove(leftover)
        yield RunFolder(path)


def _check_ours(path: Path) -> None:
    marker = path / _MARKER
    if marker.exists():
        if _read(marker).get("tool") == _TOOL:
            return
        reason = f"its {_MARKER} is not of {_TOOL}"
    else:
        # a run that was killed at once may leave a lock and a part of the marker
        ours = (_LOCK, f".{_MARKER}.")
        others = sorted(p.name for p in path.iterdir() if not p.name.startswith(ours))
        if not others:
            return
        reason = f"it holds {others[0]!r} and no {_MARKER}"
    message = f"{path} is no run folder ({reason}): nothing was changed, use an empty folder"
    raise RunError(message)


def _mark(path: Path) -> None:
    write_atomic(path / _MARKER, json.dumps({"tool": _TOOL, "format": _FORMAT}))


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

"""Stages that were done once, for every run that needs the same."""

import secrets
from dataclasses import dataclass
from pathlib import Path

from coa_compress.atomic import sync_folder
from coa_compress.runs import RunFolder, is_finished, link_files, own_folder


@dataclass(frozen=True, slots=True)
class StageCache:
    """A folder of finished stages, each named by the digest of everything that it depends on.

    Any number of processes may share it: what is in it is never changed.

    Args:
        path: The folder; made once there is something to keep.
    """

    path: Path

    def has(self, name: str, digest: str) -> bool:
        """Return whether a stage is there.

        Args:
            name: Name of the stage.
            digest: Identifies everything that the stage depends on.
        """
        return is_finished(self._entry(name, digest), digest)

    def give(self, name: str, digest: str, run: RunFolder, folder: Path) -> None:
        """Make a stage of a run done by the one that is here.

        Args:
            name: Name of the stage; ``has`` it.
            digest: Identifies everything that the stage depends on.
            run: The run.
            folder: Where that stage of the run keeps its files.

        Raises:
            RunError: If the folder was not made by a run.
        """
        run.adopt(folder, self._entry(name, digest))

    def keep(self, name: str, digest: str, folder: Path) -> None:
        """Keep a stage that a run has done; nothing happens if it is there already.

        Args:
            name: Name of the stage.
            digest: What it is done for.
            folder: Where the run keeps its files.

        Raises:
            RunError: If the folder of the cache holds something else, or cannot be written.
        """
        if self.has(name, digest):
            return
        with own_folder(self.path, "cache", wait=True) as path:
            entry = self._entry(name, digest)
            if not entry.exists():  # nobody was faster
                new = path / f".new-{secrets.token_hex(4)}"
                new.mkdir()
                link_files(folder, new)
                new.replace(entry)
                sync_folder(path)

    def _entry(self, name: str, digest: str) -> Path:
        return self.path.absolute() / f"{name}-{digest}"

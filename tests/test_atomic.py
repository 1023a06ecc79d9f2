"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from coa_compress.atomic import write_atomic


@pytest.mark.parametrize("data", ["line\r\nline\n\u00e9", b"\x00\xff\n", "", b""])
def test_a_file_holds_exactly_what_was_given(tmp_path, data):
    path = tmp_path / "deep" / "folder" / "a.bin"

    write_atomic(path, b"what was there before, and longer")
    write_atomic(path, data)

    assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert list(path.parent.iterdir()) == [path]


def test_a_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    write_atomic(tmp_path / "a", "x")

    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt("^C")])
@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path, monkeypatch, error, owner, name
):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def fail(*_given):
        raise error

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(type(error), match=r"No space left|\^C"):
        write_atomic(path, b"new")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_and_folder_are_on_disk_when_it_returns(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(handle):
        done.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    def note_replace(part, path):
        done.append(path)
        return replace(part, path)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_atomic(tmp_path / "a", "x")

    assert [done[0].parent, *done[1:]] == [tmp_path, tmp_path / "a", tmp_path]

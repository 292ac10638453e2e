"""Replacing whole files, and the file lock."""

from __future__ import annotations

from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.files import FileGoneError, FileLock, OpenFiles, replacing


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path, durable: bool) -> None:
    """Until the block ends, readers find the old content; the new file has the given mode."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with replacing(path, mode=0o600, durable=durable) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_old_file(tmp_path: Path) -> None:
    """If writing fails, the old file stays and nothing else is left."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with replacing(path, mode=0o600) as stream:
            stream.write(b"half of the ")
            raise OSError("no space on the disk")

    with pytest.raises(OSError, match="disk"):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_leftover_of_a_killed_process_is_replaced(tmp_path: Path) -> None:
    """If a link is in the temporary file's place, it is replaced and its target is not written to."""
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / "file.new").symlink_to(precious)
    with replacing(tmp_path / "file", mode=0o600) as stream:
        stream.write(b"new")
    assert precious.read_text() == "kept"
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_lock_can_be_taken_again_after_its_release(tmp_path: Path) -> None:
    """While the lock is held, taking it again raises an error; releasing it twice is harmless."""
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(ServerError, match="Another server"):
        FileLock(tmp_path / "lock")
    lock.release()
    lock.release()
    FileLock(tmp_path / "lock").release()


def test_open_files_are_those_at_their_paths(tmp_path: Path) -> None:
    """A file that was deleted, or replaced by an equal one, is noticed; one that never was there isn't missed."""
    paths = [tmp_path / name for name in ("one", "two", "none")]
    for path in paths[:2]:
        path.write_text("x")
    files = OpenFiles(*paths)
    paths[0].write_text("y")
    paths[2].write_text("z")
    files.check()
    copy = tmp_path / "copy"
    copy.write_text("x")
    copy.replace(paths[1])
    with pytest.raises(FileGoneError, match="two is another file"):
        files.check()
    paths[0].unlink()
    with pytest.raises(FileGoneError, match="one is gone"):
        files.check()

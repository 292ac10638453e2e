"""The data directory: one server at a time, and private to its user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.data_dir import LOCK_FILE, PROJECT_FILE, DataDirectory, check_project


def mode(path: Path) -> int:
    """Return a path's permissions."""
    return path.stat().st_mode & 0o7777


def test_a_new_one_is_the_users_alone(tmp_path: Path) -> None:
    """A new directory is accessible to its user only and ignored by Git."""
    path = tmp_path / "new" / "data"
    with DataDirectory(path) as opened:
        assert opened.notes == []
        assert mode(path) == 0o700
        assert mode(path / LOCK_FILE) == 0o600
        assert (path / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize("content", ["tasks.sqlite", "secret.key", None])
@pytest.mark.parametrize("open_mode", [0o755, 0o750, 0o701, 0o777])
def test_an_open_one_of_ours_is_closed(tmp_path: Path, content: str | None, open_mode: int) -> None:
    """If an empty or previously used directory is open to other users, the server closes it and adds a note."""
    tmp_path.chmod(open_mode)
    if content:
        (tmp_path / content).touch()
    with DataDirectory(tmp_path) as opened:
        assert mode(tmp_path) == 0o700
        (note,) = opened.notes
    assert f"(mode {open_mode:04o})" in note


def test_an_open_one_with_other_files_is_refused(tmp_path: Path) -> None:
    """If an open directory holds other files, the server refuses it, keeps its mode, and says what to do."""
    tmp_path.chmod(0o755)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ServerError, match=r"open to other users \(mode 0755\) and holds other files; choose"):
        DataDirectory(tmp_path)
    assert mode(tmp_path) == 0o755
    assert os.listdir(tmp_path) == ["holiday.jpg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_another_users_is_refused(tmp_path: Path) -> None:
    """Another user's directory is refused, also for root."""
    path = tmp_path / "theirs"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, -1)
    with pytest.raises(ServerError, match=r"belongs to another user \(ID 12345\)"):
        DataDirectory(path)


def test_the_second_one_is_told_who_has_it(tmp_path: Path) -> None:
    """The error names the other server's process, start time and directory; closing that server frees the directory."""
    with DataDirectory(tmp_path / "data"), pytest.raises(ServerError) as caught:
        DataDirectory(tmp_path / "data")
    assert re.fullmatch(
        rf"Another server \(process {os.getpid()}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d\) is using "
        rf"{re.escape(str(tmp_path))}/data: stop it, or choose another --data-dir\.",
        str(caught.value),
    )
    DataDirectory(tmp_path / "data").close()


def test_one_that_has_not_said_yet_who_it_is(tmp_path: Path) -> None:
    """If the lock file is locked but still empty, the error says that the process is unknown."""
    with DataDirectory(tmp_path / "data"):
        (tmp_path / "data" / LOCK_FILE).write_text("")
        with pytest.raises(ServerError, match="process unknown, started just now"):
            DataDirectory(tmp_path / "data")


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link in place of the lock file is refused, and its target is not written to."""
    target = tmp_path / "precious"
    target.write_text("kept")
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / LOCK_FILE).symlink_to(target)
    with pytest.raises(ServerError, match="can't be opened"):
        DataDirectory(data)
    assert target.read_text() == "kept"


def test_it_is_free_when_its_process_was_killed(tmp_path: Path) -> None:
    """After ``kill -9`` the lock file remains, but the lock is free."""
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from deferred_middleware.server.config.data_dir import DataDirectory\n"
        "DataDirectory(Path(sys.argv[1]))\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "data")], check=False, timeout=60)
    assert done.returncode == -9
    assert (tmp_path / "data" / LOCK_FILE).exists()
    DataDirectory(tmp_path / "data").close()


@pytest.mark.parametrize(("first", "second"), [("shop-alpha", "local-app"), ("local-app", "shop-alpha"), ("a", "aa")])
def test_another_projects_data_is_refused(tmp_path: Path, first: str, second: str) -> None:
    """The directory remembers its project. Under another one, both are named, with what to do; nothing changes."""
    check_project(tmp_path, first)
    assert mode(tmp_path / PROJECT_FILE) == 0o600
    for _start in range(2):
        with pytest.raises(ServerError) as caught:
            check_project(tmp_path, second)
        assert f"has the tasks and entities of project {first!r}, and this is project {second!r}" in str(caught.value)
        assert f"set GOOGLE_CLOUD_PROJECT={first}, or choose another --data-dir" in str(caught.value)
        check_project(tmp_path, first)


def test_a_project_file_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    """A link, a directory or strange bytes in the file's place are an error of one sentence."""
    path = tmp_path / PROJECT_FILE
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServerError, match="project can't be used"):
        check_project(tmp_path, "local-app")
    path.unlink()
    path.mkdir()
    with pytest.raises(ServerError, match="project can't be used"):
        check_project(tmp_path, "local-app")
    path.rmdir()
    path.write_bytes(b"\xff\n")
    with pytest.raises(ServerError, match="has the tasks and entities of project"):
        check_project(tmp_path, "local-app")

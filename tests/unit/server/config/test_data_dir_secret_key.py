"""The key that tasks are signed with: generated once, private, and refused if invalid."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.data_dir import SigningKeyFile


def test_it_is_made_once(tmp_path: Path) -> None:
    """The first start generates a key that only the user can read; later starts use it."""
    first = SigningKeyFile(tmp_path)
    assert len(first.text) == 64
    assert os.listdir(tmp_path) == ["secret.key"]
    assert (tmp_path / "secret.key").stat().st_mode & 0o7777 == 0o600
    assert SigningKeyFile(tmp_path).text == first.text
    assert first.notes == []


def test_each_directory_has_its_own(tmp_path: Path) -> None:
    """Two directories have different keys."""
    (tmp_path / "other").mkdir()
    assert SigningKeyFile(tmp_path).text != SigningKeyFile(tmp_path / "other").text


def test_a_half_made_one_is_made_anew(tmp_path: Path) -> None:
    """A key file that a crashed server left incomplete is never used."""
    (tmp_path / "secret.key.new").write_text("ha")
    assert len(SigningKeyFile(tmp_path).text) == 64
    assert os.listdir(tmp_path) == ["secret.key"]


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604, 0o700])
def test_a_wrong_mode_is_repaired_and_said(tmp_path: Path, mode: int) -> None:
    """If other users could read the key, the server makes it private and notes that they may have read it."""
    text = SigningKeyFile(tmp_path).text
    (tmp_path / "secret.key").chmod(mode)
    again = SigningKeyFile(tmp_path)
    assert again.text == text
    assert (tmp_path / "secret.key").stat().st_mode & 0o7777 == 0o600
    (note,) = again.notes
    assert f"(mode {mode:04o})" in note


@pytest.mark.parametrize("content", ["", "short\n", "x" * 31, "a" * 20 + " " + "b" * 20, "a" * 40 + ",b", "é" * 40])
def test_what_is_no_key_is_refused(tmp_path: Path, content: str) -> None:
    """An empty, short or malformed key file is kept and causes an error that says what to do."""
    (tmp_path / "secret.key").write_text(content)
    (tmp_path / "secret.key").chmod(0o600)
    with pytest.raises(ServerError, match=r"holds no key .* Put a copy of the key back, or remove the file"):
        SigningKeyFile(tmp_path)
    assert (tmp_path / "secret.key").read_text() == content


def test_a_link_or_a_pipe_is_refused(tmp_path: Path) -> None:
    """A symbolic link or a pipe in place of the key file is refused."""
    (tmp_path / "elsewhere").write_text("k" * 40)
    (tmp_path / "secret.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServerError, match="can't be used"):
        SigningKeyFile(tmp_path)
    (tmp_path / "secret.key").unlink()
    os.mkfifo(tmp_path / "secret.key")
    with pytest.raises(ServerError, match="not a file of yours"):
        SigningKeyFile(tmp_path)


def test_what_is_derived_depends_on_the_purpose(tmp_path: Path) -> None:
    """Each purpose has its own derived secret, which stays the same after a restart."""
    key = SigningKeyFile(tmp_path)
    assert key.derive("a") != key.derive("b")
    assert SigningKeyFile(tmp_path).derive("a") == key.derive("a")

"""Tests of the page about quality: its thirty points, and that the commands which prove them exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.repository import ROOT

PAGE = (ROOT / "docs" / "quality.rst").read_text()
SECTIONS = re.split(r"^(?:Documentation|Policy|Release)\n=+$", PAGE, flags=re.MULTILINE)[1:]
COMMANDS = [command for text in SECTIONS for command in re.findall(r"``([^`]+)``", text)]


def test_there_are_thirty_points() -> None:
    """14 points about the documentation, 6 about policies and 10 about releases."""
    numbers = [[int(number) for number in re.findall(r"^   \* - (\d+)$", text, re.MULTILINE)] for text in SECTIONS]

    assert [len(found) for found in numbers] == [14, 6, 10]
    assert [number for found in numbers for number in found] == list(range(1, 31))


def files_below(path: Path) -> list[Path]:
    """Return the test files at a path, and the path itself if it does not exist."""
    return sorted(path.rglob("test_*.py")) if path.is_dir() else [path]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("pytest ")])
def test_the_tests_of_a_point_exist(command: str) -> None:
    """Each path exists, and ``-k`` selects a test, by the name of its function or of its file."""
    paths, _, name = command.removeprefix("pytest ").partition(" -k ")
    files = [file for path in paths.split() for file in files_below(ROOT / path)]

    names = [found for file in files for found in [file.stem, *re.findall(r"def (test_\w+)", file.read_text())]]
    assert [found for found in names if name in found] != []


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make ")])
def test_the_target_of_a_point_exists(command: str) -> None:
    """The Makefile has the target."""
    assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", [command for command in COMMANDS if re.fullmatch(r"[\w./-]+/[\w.-]+", command)])
def test_the_file_of_a_point_exists(path: str) -> None:
    """A file that proves a point is in the repository; ``dist/`` is made by the command before it."""
    assert path.startswith("dist/") or (ROOT / path).is_file()

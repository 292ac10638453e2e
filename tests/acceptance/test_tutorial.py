"""The tutorial, executed as it stands: its commands in a new environment and an empty folder, its code as files.

Two things differ from what a reader does: the repository's clone is a copy without its virtual environment, and the
ports are free ones.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.elsewhere import free_port
from tests.support.pages import Block, blocks, shown_as
from tests.support.repository import ROOT
from tests.support.running import WAIT_SECONDS

PAGE = ROOT / "docs" / "tutorial.rst"
INSTALL_SECONDS = 600


class Reader:
    """Somebody who follows the tutorial, with two terminals."""

    def __init__(self, directory: Path) -> None:
        self.clone = directory / "clone"
        shutil.copytree(
            ROOT,
            self.clone,
            ignore=shutil.ignore_patterns(
                ".git", ".venv*", ".mypy_cache", ".ruff_cache", ".hypothesis", "tests", "_build"
            ),
        )
        self.folder = directory / "app"
        self.folder.mkdir()
        self._output = directory / "first-terminal"
        self._read = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._ports = {"8080": free_port(), "8000": free_port()}
        self._environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DEFERRED_", "GAE_", "PYTEST_", "PYTHONPATH", "VIRTUAL_ENV"))
        }
        self._environ["PATH"] = f"{self.clone / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
        # The output of a program that writes to a file would come late.
        self._environ["PYTHONUNBUFFERED"] = "1"

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        if block.not_executed:
            return
        if block.caption == "in the clone":
            for command, _shown in block.steps:
                self._run(command.replace("python3 -m venv", f"{sys.executable} -m venv"), self.clone, INSTALL_SECONDS)
        elif block.caption == "first terminal":
            ((command, shown),) = block.steps
            self._serve(command)
            self._wait_for_output(shown, block)
        elif block.caption == "first terminal, output":
            self._wait_for_output(block.body, block)
        elif block.language == "console":
            for command, shown in block.steps:
                self._compare(self._run(command, self.folder, WAIT_SECONDS), shown, block)
        elif block.caption.endswith(", only this function"):
            self._replace_function(self.folder / block.caption.split(",")[0], block.body)
        else:
            assert block.caption, f"line {block.line}: a block that is no file, no command and no output"
            (self.folder / block.caption).write_text(block.body)

    def close(self) -> None:
        """Press Ctrl-C in the first terminal."""
        if self._server is not None:
            os.killpg(self._server.pid, signal.SIGINT)
            assert self._server.wait(WAIT_SECONDS) == 0, self._output.read_text()
            self._server = None

    def _with_ports(self, text: str) -> str:
        return re.sub(r"\b(8080|8000)\b", lambda match: str(self._ports[match[0]]), text)

    def _run(self, command: str, directory: Path, seconds: float) -> str:
        # The tutorial's reader has activated the environment.
        command = command.replace(". .venv/bin/activate", "true")
        done = subprocess.run(
            ["bash", "-c", self._with_ports(command)],
            cwd=directory,
            env=self._environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    def _serve(self, command: str) -> None:
        self.close()
        ports = f"--port {self._ports['8080']} --admin-port {self._ports['8000']}"
        with self._output.open("wb") as output:
            self._server = subprocess.Popen(
                ["bash", "-c", f"exec {self._exported(command)} {ports}"],
                cwd=self.folder,
                env=self._environ,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._read = 0

    @staticmethod
    def _exported(command: str) -> str:
        # ``exec`` takes no assignments before the command.
        return f"env {command}" if re.match(r"[A-Z_]+=", command) else command

    def _wait_for_output(self, shown: str, block: Block) -> None:
        """Wait until the first terminal shows the lines, in this order, after those of the blocks before."""
        deadline = time.monotonic() + WAIT_SECONDS
        for line in shown.splitlines():
            pattern = shown_as(self._with_ports(line))
            while not (match := pattern.search(self._output.read_text(), self._read)):
                assert time.monotonic() < deadline, (
                    f"line {block.line}: {line!r} is not shown by\n{self._output.read_text()}"
                )
                time.sleep(0.1)  # nothing announces new output in a file
            self._read = match.end()

    @staticmethod
    def _compare(output: str, shown: str, block: Block) -> None:
        for line in shown.splitlines():
            assert shown_as(line).search(output), f"line {block.line}: {line!r} is not shown by\n{output}"

    @staticmethod
    def _replace_function(path: Path, code: str) -> None:
        """Put a function in the place of the one with its name, as a reader does in an editor."""
        (new,) = ast.parse(code).body
        assert isinstance(new, ast.FunctionDef)
        lines = path.read_text().splitlines(keepends=True)
        (old,) = (
            node
            for node in ast.parse("".join(lines)).body
            if isinstance(node, ast.FunctionDef) and node.name == new.name
        )
        lines[old.lineno - 1 : old.end_lineno] = [code]
        path.write_text("".join(lines))


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Somebody in an empty folder."""
    reader = Reader(tmp_path)
    yield reader
    reader.close()


def test_the_tutorial_works_as_it_stands(reader: Reader) -> None:
    """Each step of the tutorial can be done in its order, and shows what the page says."""
    steps = blocks(PAGE)
    assert len(steps) >= 20
    for block in steps:
        reader.follow(block)

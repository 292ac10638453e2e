"""Tests of the completion of commands in a shell."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from deferred_middleware.cli.main import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["t"], "tasks"),
        (["tasks", "--sta"], "--state"),
        (["purge", "--y"], "--yes"),
        (["serve", "--no-t"], "--no-task-lines"),
        (["show", "4"], ""),
    ],
)
def test_bash_completes_commands_and_options(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script has bash complete the words of a command line."""
    assert main(["completion", "bash"]) == 0
    line = " ".join(shlex.quote(word) for word in ["deferred-middleware", *words])
    script = capsys.readouterr().out + (
        f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; _deferred_middleware; echo "${{COMPREPLY[*]}}"\n'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout.strip(), done.stderr) == (expected, "")

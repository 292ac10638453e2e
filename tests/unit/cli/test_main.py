"""Tests of the command line: arguments and error messages. The acceptance tests cover ``serve`` itself."""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import deferred_middleware
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.main import COMMANDS, main
from deferred_middleware.cli.output import print_line


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python -m deferred_middleware`` with the given arguments in ``cwd``."""
    package = str(Path(deferred_middleware.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-m", "deferred_middleware", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_version(tmp_path: Path) -> None:
    """``--version`` prints the version, also as ``python -m deferred_middleware``."""
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"deferred-middleware {deferred_middleware.__version__}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["replay", "--help"]])
def test_help_does_not_load_the_server(arguments: list[str], tmp_path: Path) -> None:
    """Help is fast: it imports neither the SDK nor the server."""
    code = (
        "import sys\n"
        "from deferred_middleware.cli.main import main\n"
        f"try:\n    main({arguments!r})\n"
        "except SystemExit: pass\n"
        "assert not [n for n in sys.modules if n.startswith(('google.appengine', 'waitress'))], 'loaded'\n"
    )
    package = str(Path(deferred_middleware.__file__).parent.parent)
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": package}, check=True, timeout=60
    )


def test_an_error_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    """An error is one line on standard error, with the program's name."""
    assert main(["serve", "main:app", "--service", "background"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("deferred-middleware: ")
    assert err.count("\n") == 1


def test_a_traceback_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """``--traceback`` prints the traceback before the message."""
    assert main(["serve", "main:app", "--service", "background", "--traceback"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("deferred-middleware: ")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["serve", "main:app", "--port", "70000"],
        ["serve", "main:app", "--port", "x"],
        ["serve", "main:app", "--threads", "0"],
        ["serve", "main:app", "--nonsense"],
    ],
)
def test_wrong_arguments_are_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong arguments exit with argparse's status, 2."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_missing_extra_is_told() -> None:
    """If waitress is not installed, the error says how to install it."""
    # In a process of its own, where nothing of the server is imported yet.
    code = (
        "import sys; sys.modules['waitress'] = None; from deferred_middleware.cli.main import main;"
        "sys.exit(main(['serve', 'main:app']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "pip install 'deferred_middleware[server]'" in done.stderr


def test_the_missing_extra_of_reload_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If watchfiles is not installed, --reload fails before anything starts and says how to install it."""
    missing: Any = None
    monkeypatch.setitem(sys.modules, "watchfiles", missing)
    assert main(["serve", "main:app", "--reload"]) == 1
    assert "pip install 'deferred_middleware[reload]'" in capsys.readouterr().err


def test_reload_without_an_app_of_ours_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """--reload is refused if all services run outside the local server, which can't restart them."""
    assert main(["serve", "--service", "default=http://127.0.0.1:9", "--reload"]) == 1
    assert "--reload is for apps that the server runs itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", b"Gr\\xfc\\xdfe \\u6f22\n"), ("latin-1", b"Gr\xfc\xdfe \\u6f22\n")]
)
def test_what_the_terminal_cannot_show_is_escaped(
    monkeypatch: pytest.MonkeyPatch, encoding: str, expected: bytes
) -> None:
    """A character that the encoding of standard output does not have is written as an escape."""
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding=encoding) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        with pytest.raises(SystemExit):
            main(["--version"])
        print_line("Grüße 漢")
        stdout.flush()
        assert written.getvalue().endswith(expected)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["serve", "main:app", "--prot", "9000"], "did you mean --port?"),
        (["serve", "main:app", "--admin-prot=9000"], "did you mean --admin-port?"),
        (["tasks", "--stat3", "failed"], "did you mean --state?"),
        (["tasks", "--state", "faild"], "did you mean failed?"),
        (["task"], "did you mean tasks?"),
        (["purge", "default", "--yess"], "did you mean --yes?"),
    ],
)
def test_a_misspelt_argument_is_told_with_what_was_meant(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown option, command or choice is an error that suggests the nearest one."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f"{hint}\n")


def test_an_argument_like_no_other_has_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is suggested that is not similar."""
    with pytest.raises(SystemExit):
        main(["queues", "--xyzzyxyzzy"])
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_has_examples_that_work(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    """The help of each command has examples, and the parser takes them."""
    with pytest.raises(SystemExit):
        main([command.name, "--help"])
    assert "\nexamples:\n  " in capsys.readouterr().out
    for example in command.examples:
        if command.name == "completion":
            assert f"deferred-middleware {command.name} " in example
            continue
        program, name, *arguments = shlex.split(example.partition(" < ")[0])
        assert (program, name) == ("deferred-middleware", command.name)
        command.make_parser().parse_args(arguments)

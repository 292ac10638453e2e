"""Tests of the source check: what it finds, what it ignores, and how the command reports findings."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from deferred_middleware.calls.options import OPTION_NAMES
from deferred_middleware.cli.main import main
from deferred_middleware.cli.source_check import check_source

OURS = "from deferred_middleware import defer\n"
SDK = "from google.appengine.ext import deferred\n"


def found(source: str) -> list[tuple[int, str, str]]:
    """Return line, severity and message of each finding."""
    return [(f.line, f.severity, f.message) for f in check_source(textwrap.dedent(source))]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("defer(lambda: 1)", "a lambda can't be imported"),
        ("f = lambda: 1\ndefer(f)", "f is a lambda"),
        ("def outer():\n    def inner(): pass\n    defer(inner)", "inner is defined inside a function"),
        ("def outer():\n    class Inner: pass\n    defer(Inner)", "Inner is defined inside a function"),
        ("def f(x): pass\ndefer(f(1))", "this calls the function now"),
        ("def f(): yield\ndefer(f)", "f is a generator function; calling it doesn't run its body"),
        ("async def f(): yield\ndefer(f)", "f is a generator function; calling it doesn't run its body"),
        ("defer('main.f')", "'main.f' is not callable"),
        ("defer()", "the callable to defer is missing"),
        ("defer(f, _countdwn=5)", "_countdwn is not an option; did you mean _countdown?"),
        ("def f(x): pass\ndefer(f, 1, _flavour=2)", "_flavour is not an option; the options are"),
        ("def f(x): pass\ndefer(f)", "f() also needs x"),
        ("def f(x, *, y): pass\ndefer(f, 1)", "f() also needs y"),
        ("def f(x): pass\ndefer(f, 1, 2)", "f() takes 1 positional argument, not 2"),
        ("def f(x): pass\ndefer(f, 1, z=2)", "f() has no argument z"),
        ("def f(x): pass\ndefer(f, 1, x=2)", "f() gets x twice"),
        ("defer(f, lambda: 1)", "a lambda can't be pickled"),
        ("defer(f, items=(x for x in y))", "a generator can't be pickled"),
        ("defer(f, open('x'))", "the result of open() can't be pickled"),
        ("import threading\ndefer(f, threading.Lock())", "the result of threading.Lock() can't be pickled"),
        (f"defer(f, '{'x' * 11_000_000}')", "this literal has 11,000,000 bytes"),
        ("defer(f, _name='a b')", "a task's name has"),
        ("defer(f, _name='abc\\n')", "a task's name has"),
        ("defer(f, _queue='my_queue')", "a queue's name has"),
        ("defer(f, _queue=['ok', 'not ok'])", "a queue's name has"),
        ("defer(f, _countdown=2592001)", "the ETA can be at most 30 days"),
        ("defer(f, _countdown=1, _eta=when)", "_countdown and _eta can't be combined"),
        ("defer(f, _name='x', _transactional=True)", "a transactional task can't have a name"),
        ("import functools\ndefer(functools.partial(lambda: 1))", "a lambda can't be imported"),
    ],
)
def test_what_will_fail_is_found(source: str, message: str) -> None:
    """Each mistake that is visible in the source is reported as one error."""
    (finding,) = found(OURS + source)

    assert finding[1] == "error"
    assert message in finding[2]


@pytest.mark.parametrize(
    "source",
    [
        "def f(x): pass\ndefer(f, 1, _countdown=5, _queue='a', _name='b')",
        "def f(x, _flavour=1): pass\ndefer(f, 1, _flavour=2)",
        "def f(**kwargs): pass\ndefer(f, _flavour=2)",
        "def f(*args): pass\ndefer(f, *many)",
        "def f(x): pass\ndefer(f, **given)",
        "@ndb.tasklet\ndef f(): yield\ndefer(f)",
        "@decorate\ndef f(x): pass\ndefer(f)",
        "defer(imported, 1, _mine=2)",
        "defer(obj.method, 1)",
        "defer(make_callable(), 1)",
        "def outer():\n    def f(): yield\nasync def f(): pass\ndefer(f)",
        "class C:\n    def f(self): pass\n    def g(self): defer(f)\ndef f(): pass",
        "defer(f, _queue=None, _url=None)",
        "defer(f, _name=name, _countdown=-x)",
        "def defer(f): pass",
    ],
)
def test_what_may_be_right_is_left_alone(source: str) -> None:
    """Correct code, and code that can't be judged from the source alone, is not reported."""
    assert found(OURS + source) == []


def test_only_defer_is_looked_at() -> None:
    """Another library's function with the same name is ignored."""
    assert found("from twisted import defer\ndefer(lambda: 1)") == []
    assert found("d.defer(lambda: 1)") == []


@pytest.mark.parametrize(
    "call",
    [
        "from deferred_middleware import defer_async as later\nlater(lambda: 1)",
        "import deferred_middleware\ndeferred_middleware.defer(lambda: 1)",
        "import deferred_middleware as dm\ndm.call(lambda: 1)",
        "from google.appengine.ext import deferred\ndeferred.defer(lambda: 1)",
        "from google.appengine.ext.deferred import defer\ndefer(lambda: 1)",
        "from deferred_middleware.compat import deferred\ndeferred.defer(lambda: 1)",
        "import tasks\ntasks.addTask('q', lambda: 1)",
        "from deferred_middleware.compat import tasks\ntasks.addTask(['q'], lambda: 1)",
    ],
)
def test_the_call_is_known_by_its_import(call: str) -> None:
    """The library's, the SDK's and freshplanet's functions are recognised under any imported name."""
    assert [severity for _, severity, _ in found(call)] == ["error"]


def test_what_the_older_library_refuses_is_a_note() -> None:
    """An option that is None is a note, because the SDK's module fails on it and the library ignores it."""
    ((line, severity, message),) = found(SDK + "deferred.defer(f, _url=None)")

    assert (line, severity) == (2, "note")
    assert "_url=None" in message


def test_a_literal_that_does_not_fit_in_a_task_is_a_note() -> None:
    """A literal that needs the datastore is a note with its size."""
    ((_, severity, message),) = found(f"{OURS}defer(f, ['{'x' * 60_000}', b'{'y' * 60_000}'])")

    assert severity == "note"
    assert "this literal has 120,000 bytes" in message


def test_a_file_that_does_not_parse_is_a_finding() -> None:
    """A syntax error is reported with its line."""
    ((line, severity, message),) = found("x = 1\ndef (:\n")

    assert (line, severity) == (2, "error")
    assert "can't be parsed" in message


def test_the_command_names_file_and_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command searches folders, reports file and line, and exits with 1 if there is an error."""
    package = tmp_path / "app"
    package.mkdir()
    (package / "views.py").write_text(OURS + "defer(lambda: 1)\n")
    (package / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "other.py").write_text("def (")

    assert main(["check", str(tmp_path)]) == 1

    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{package / 'views.py'}:2:7: error: a lambda")
    assert last == "1 error and 0 notes in 2 files."


def test_the_command_tells_machines_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --json the findings are a list, and the command exits with 0 if there is no error."""
    good = tmp_path / "good.py"
    good.write_text(SDK + "deferred.defer(f, _queue=None)\n")

    assert main(["check", "--json", str(good)]) == 0

    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["path"], finding["line"], finding["severity"]) == (str(good), 2, "note")


def test_a_path_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong path is reported on standard error, without a traceback."""
    assert main(["check", str(tmp_path / "nowhere")]) == 1

    assert "neither a file nor a folder" in capsys.readouterr().err


def test_every_option_is_known_to_the_check() -> None:
    """An option of defer is never reported as unknown."""
    for option in OPTION_NAMES:
        assert found(f"{OURS}defer(f, {option}=x)") == []

"""Tests of what a user sees when a test fails: the line of the test, the tasks, and the fixture that is missing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from deferred_middleware import DeferredMiddleware, defer
from deferred_middleware.testing import capture_tasks
from tests.support import sample
from tests.support.repository import ROOT

FAILING = {
    "assert_enqueued": "tasks.assert_enqueued(sample.note, 2)",
    "assert_not_enqueued": "tasks.assert_not_enqueued(sample.note, 1)",
    "assert_nothing_enqueued": "tasks.assert_nothing_enqueued()",
    "misspelt": "tasks.assert_enqueued(sample.note, _qeue='x')",
    "arguments": "tasks.assert_enqueued(sample.pair, 1, 2, 3, 4, 5)",
    "run": "tasks.run()",
    "run_all": "tasks.run_all()",
    "no such task": "tasks.clear(); tasks.run()",
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return what pytest prints for a module of failing tests."""
    folder = tmp_path_factory.mktemp("failing")
    lines = ["from deferred_middleware import defer", "from tests.support import sample", ""]
    for name, code in FAILING.items():
        lines += [
            f"def test_{name.replace(' ', '_')}(deferred_tasks):",
            "    tasks = deferred_tasks",
            "    defer(sample.note, 1)",
            f"    {code}  # {name} fails here",
            "",
        ]
    lines += ["def test_without_the_fixture():", "    defer(sample.note, 1)"]
    (folder / "test_failing.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--rootdir", str(folder), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert f"{len(FAILING) + 1} failed" in done.stdout, done.stdout
    return done.stdout


@pytest.mark.parametrize("name", FAILING)
def test_the_line_of_the_test_is_shown(shown: str, name: str) -> None:
    """The traceback ends at the line of the test, and shows none of our code."""
    assert f">       {FAILING[name]}" in shown or f"{FAILING[name]}  # {name} fails here" in shown
    assert not [line for line in shown.splitlines() if "deferred_middleware/testing/" in line]


def test_without_the_fixture_the_error_names_it(shown: str) -> None:
    """A test that forgets the fixture learns its name."""
    assert "use the pytest fixture deferred_tasks" in shown


def site(environ: Any, start_response: Any) -> list[bytes]:
    """Answer requests that are not tasks."""
    start_response("404 Not Found", [])
    return []


def test_the_tasks_are_printed() -> None:
    """The repr has the counts and the first tasks."""
    with capture_tasks(DeferredMiddleware(site)) as tasks:
        assert repr(tasks) == "<DeferredTasks: 0 enqueued, 0 pending, attempts: 0, failed: 0>"
        for number in range(22):
            defer(sample.note, number)
        tasks.run(tasks.pending[0])
        lines = repr(tasks).splitlines()

    assert lines[0] == "<DeferredTasks: 22 enqueued, 21 pending, attempts: 1, failed: 0>"
    assert "note(0)" in lines[1]
    assert (len(lines), lines[-1]) == (22, "  and 2 more")

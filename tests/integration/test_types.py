"""Type checkers see the types of calls, options and hooks: mypy and pyright report the same mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = """
import datetime
import functools
from typing import Any

from deferred_middleware import (
    DeferredMiddleware, EnqueueFuture, EnqueuedTask, Hook, Outcome, TaskContext, call, defer, defer_async, defer_many,
    task,
)
from deferred_middleware.config.hooks import Enqueued
from deferred_middleware.contrib.django import defer_on_commit


# The methods of @task.


@task(queue="mail")
def send(user: int, *, loud: bool = False) -> str:
    return ""


@task
async def later(user: int) -> None: ...


class Shop:
    @task
    def sell(self, item: str) -> int:
        return 1

    @task(queue="slow")
    @classmethod
    def open(cls, name: str) -> int:
        return 1

    @task
    @staticmethod
    def count(number: int) -> int:
        return 1


shop = Shop()
fine: str = send(1, loud=True)
send.defer(1, loud=True)
send.options(countdown=5).defer(1)
send.options(queue=["a", "b"], eta=datetime.datetime.now(datetime.timezone.utc), transactional="auto").defer(1)
later.defer_async(1)
number: int = shop.sell("tea")
shop.sell.defer("tea")
Shop.open.defer("x")
Shop.count.defer(1)
send.defer("one")  # wrong: a text for a number
send.defer()  # wrong: nothing
send.defer(1, laud=True)  # wrong: misspelt
send.options(queue="x").call(1, 2)  # wrong: one too many
send.options(queue="x").defer()  # wrong: nothing
send.options(qeue="x")  # wrong: misspelt option
send.options(countdown="5")  # wrong: a text for seconds
send.options(transactional="maybe")  # wrong: no such value
later.defer(None)  # wrong: None
later.defer_async()  # wrong: nothing
shop.sell.defer(1)  # wrong: a number for a text
Shop.open.defer(1)  # wrong: a number for a text
Shop.count.defer("x")  # wrong: a text for a number
bad: int = send(1)  # wrong: returns a text
task(queues="x")  # wrong: no such option

# Plain functions and other callables.


def pair(first: int, second: str = "") -> int:
    return 1


def spread(*numbers: int, **names: str) -> None: ...


async def wait(user: int) -> None: ...


class Mailer:
    def __init__(self, name: str, port: int = 25) -> None: ...

    def send(self, user: int, text: str = "") -> None: ...

    @classmethod
    def make(cls, name: str) -> None: ...

    def __call__(self, user: int) -> None: ...


mailer = Mailer("x")
untyped: Any = pair
options: dict[str, Any] = {}
enqueued: EnqueuedTask = defer(pair, 1)
future: EnqueueFuture = defer_async(pair, 1)
defer(pair, 1, "x")
defer(pair, first=1, second="x")
defer(pair, 1, _queue="mail")
defer(pair, 1, "x", _queue=["a", "b"], _countdown=datetime.timedelta(minutes=1), _name="n", _max_attempts=3)
defer(pair, 1, _retry_options={"task_retry_limit": 2}, _headers={"X-A": "b"}, _deadline=60, _target="worker", _url="/x")
defer(pair, 1, **options)
defer(spread, 1, 2, name="x")
defer(spread, 1, 2, _queue="mail")
defer(spread, _queue="mail")
defer(wait, 1, _queue="mail")
defer(Mailer, "x", _queue="mail")
defer(mailer.send, 1, _queue="mail")
defer(Mailer.make, "x", _queue="mail")
defer(mailer, 1, _queue="mail")
defer(send, 1, _queue="mail")
defer(later, 1, _queue="mail")
defer(shop.sell, "tea", _queue="mail")
defer(functools.partial(pair, 1), _queue="mail")
defer(functools.partial(pair, second="x"), 1, _queue="mail")
defer(untyped, 1, second="x", _queue="mail")
defer_async(pair, 1, _countdown=5)
defer_many((call(pair, n, _countdown=n) for n in range(3)), parallel=2, _queue="mail")
defer_on_commit(pair, 1, _using="other", _queue="mail")
defer_on_commit(pair, 1, second="x")
defer(pair)  # wrong: an argument is missing
defer(pair, "x")  # wrong: a text for a number
defer(pair, 1, third=3)  # wrong: no such argument
defer(pair, _queue="mail")  # wrong: an argument is missing
defer(pair, "x", _queue="mail")  # wrong: a text for a number
defer(pair, 1, "x", 3, _queue="mail")  # wrong: one too many
defer(pair, 1, _qeue="mail")  # wrong: misspelt
defer(pair, 1, _queue="mail", _contdown=5)  # wrong: misspelt
defer(pair, 1, _countdown="5")  # wrong: a text for seconds
defer(pair, 1, _transactional="maybe")  # wrong: no such value
defer(spread, "x", _queue="mail")  # wrong: a text for a number
defer(wait, _queue="mail")  # wrong: an argument is missing
defer(Mailer, _queue="mail")  # wrong: an argument is missing
defer(mailer.send, "x", _queue="mail")  # wrong: a text for a number
defer(Mailer.make, 1, _queue="mail")  # wrong: a number for a text
defer(mailer, "x")  # wrong: a text for a number
defer(send)  # wrong: an argument is missing
defer(pair(1))  # wrong: the result of a call
defer_async(pair)  # wrong: an argument is missing
defer_async(pair, 1, _qeue="mail")  # wrong: misspelt
call(pair)  # wrong: an argument is missing
call(pair, 1, _qeue="mail")  # wrong: misspelt
defer_many([], _qeue="mail")  # wrong: misspelt
defer_many([pair])  # wrong: not a call
defer_on_commit(pair)  # wrong: an argument is missing
defer_on_commit(pair, 1, _qeue="mail")  # wrong: misspelt
defer(pair, 1, second="x", _queue="mail")  # wrong for a type checker, which can't compare both

# Hooks.


class Told:
    def on_enqueue(self, enqueued: Enqueued) -> None:
        print(enqueued.queue)


class Inherits(Hook):
    def before_task(self, task: TaskContext) -> None:
        print(task.queue)


class Misspelt:
    def on_enqueued(self, enqueued: Enqueued) -> None: ...


class OtherArguments:
    def after_task(self, context: TaskContext) -> None: ...


class Awaited:
    async def before_task(self, context: TaskContext) -> None: ...


class InheritsOtherArguments(Hook):
    def after_task(self, context: TaskContext) -> None: ...  # wrong: two arguments


def app(environ: Any, start_response: Any) -> list[bytes]:
    return []


DeferredMiddleware(app, hooks=[Told(), Inherits()])
DeferredMiddleware(app, hooks=[Misspelt()])  # wrong: no method of a hook
DeferredMiddleware(app, hooks=[OtherArguments()])  # wrong: other arguments
DeferredMiddleware(app, hooks=[Awaited()])  # wrong: not awaited
DeferredMiddleware(app, hooks=[object()])  # wrong: no method
"""

ROOT = str(Path(__file__).resolve().parents[2])


def _run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "MYPYPATH": ROOT,
            "PYTHONPATH": ROOT,
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
            # ``--verifytypes`` takes the first Python of the PATH, whatever --pythonpath says.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout + done.stderr


def _lines(output: str) -> Iterator[int]:
    """The lines with errors. Mypy counts the lines alone; pyright adds a column."""
    return (int(line) for line in re.findall(r"shop\.py:(\d+)(?::\d+)?(?: -)?:? error", output))


@pytest.mark.parametrize(
    "checker",
    [["mypy", "--strict", "--no-error-summary", "--cache-dir=cache"], ["pyright", "--pythonpath", sys.executable]],
    ids=["mypy", "pyright"],
)
def test_wrong_arguments_are_type_errors(tmp_path: Path, checker: list[str]) -> None:
    """Each type checker reports exactly the lines that are marked as wrong."""
    (tmp_path / "shop.py").write_text(SOURCE)

    output = _run([*checker, "shop.py"], tmp_path)

    wrong = [number for number, line in enumerate(SOURCE.splitlines(), 1) if "# wrong" in line]
    assert sorted(set(_lines(output))) == wrong, output


def test_the_whole_package_has_types(tmp_path: Path) -> None:
    """Pyright knows the type of everything in the package, also of what inherits from the SDK's untyped classes."""
    output = _run(
        ["pyright", "--verifytypes", "deferred_middleware", "--ignoreexternal"],
        tmp_path,
    )

    untyped, heading, _ = output.partition("Symbols used in public interface:")[2].partition("Symbols exported by")
    assert heading, output
    assert untyped.strip() == ""
    assert "Type completeness score: 100%" in output

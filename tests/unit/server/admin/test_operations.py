"""What people can do, with a server that only shows, and what the log of changes says of it."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.server.admin.change_log import Actor, ChangeLog
from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.reading.search import TaskSearch
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.store.records import NewTask
from deferred_middleware.server.store.store import TaskStore

BOB = Actor(via="API", who="bob")

CHANGES: dict[str, Callable[[Operations], dict[str, Any]]] = {
    "run": lambda operations: operations.run(BOB, operations.task("1")),
    "retry": lambda operations: operations.retry(BOB, operations.task("1")),
    "delete": lambda operations: operations.delete(BOB, operations.task("1")),
    "pause": lambda operations: operations.pause(BOB, "default"),
    "resume": lambda operations: operations.resume(BOB, "default"),
    "undo_purge": lambda operations: operations.undo_purge(BOB, "default"),
    "set_eta": lambda operations: operations.set_eta(BOB, operations.task("1"), 5),
    "move": lambda operations: operations.move(BOB, operations.task("1"), "default"),
    "change_tasks": lambda operations: operations.change_tasks(BOB, "run", [1]),
    "change_matching": lambda operations: operations.change_matching(BOB, "delete", TaskSearch(), newest_id=1),
    "purge": lambda operations: operations.purge(BOB, "default"),
    "retry_failed": lambda operations: operations.retry_failed(BOB, "default"),
    "retry_all_failed": lambda operations: operations.retry_all_failed(BOB),
    "delete_failed": lambda operations: operations.delete_failed(BOB, "default"),
    "run_scheduled": lambda operations: operations.run_scheduled(BOB, "default"),
    "forget": lambda operations: operations.forget(BOB, "default"),
    "control": lambda operations: operations.control(BOB, "reset", lambda: {"deleted": 0}),
}


def opened(path: Path, *, read_only: bool) -> tuple[Operations, list[None]]:
    """Return operations on a store with a scheduled task, and what is added to when the scheduler is woken."""
    store = TaskStore(path / "tasks.sqlite")
    store.add([NewTask(queue="default", url="/work", eta_usec=2**60)])
    woken: list[None] = []
    operations = Operations(
        store,
        queues=QueueRegistry,
        wake_scheduler=lambda: woken.append(None),
        about={},
        change_log=ChangeLog(None),
        read_only=read_only,
    )
    return operations, woken


@pytest.mark.parametrize("name", CHANGES)
def test_a_server_that_only_shows_refuses_every_change(tmp_path: Path, name: str) -> None:
    """With read_only, a change raises an error, and neither the store nor the log is touched."""
    operations, woken = opened(tmp_path, read_only=True)
    if name == "undo_purge":
        operations.store.purges.purge("default")
    before = operations.store.queries.version()

    with pytest.raises(OperationError, match="--read-only") as caught:
        CHANGES[name](operations)

    assert caught.value.status == HTTPStatus.FORBIDDEN
    assert operations.store.queries.version() == before
    assert operations.change_log.newest() == []
    assert woken == []
    operations.store.close()


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "retry"])
def test_every_change_is_logged(tmp_path: Path, name: str) -> None:
    """The log has who did what, and the scheduler is woken."""
    operations, woken = opened(tmp_path, read_only=False)
    if name == "undo_purge":
        operations.store.purges.purge("default")

    answer = CHANGES[name](operations)

    (change,) = operations.change_log.newest()
    assert (change["via"], change["who"], change["answer"]) == ("API", "bob", answer)
    assert len(woken) == 1
    operations.store.close()


def test_every_change_is_in_the_table_above() -> None:
    """A public method that takes an actor is a change."""
    import inspect

    changes = {
        name
        for name, method in inspect.getmembers(Operations, inspect.isfunction)
        if not name.startswith("_") and "actor" in inspect.signature(method).parameters
    }

    # change() makes the changes of the reports.
    assert changes - {"change"} == set(CHANGES)


def test_what_fails_is_not_logged(tmp_path: Path) -> None:
    """A change that can't be made leaves no line, because nothing was changed."""
    operations, _woken = opened(tmp_path, read_only=False)

    with pytest.raises(OperationError):
        operations.retry(BOB, operations.task("1"))
    with pytest.raises(OperationError):
        operations.pause(BOB, "unknown")

    assert operations.change_log.newest() == []
    operations.store.close()

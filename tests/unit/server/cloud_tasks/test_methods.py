"""What becomes of failures behind the API."""

from __future__ import annotations

import errno
import sqlite3

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError, RpcCode
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep.disk_reserve import StoreFullError
from deferred_middleware.server.store.writer import StoreStoppedError
from tests.support.cloud_api import QUEUE, Api
from tests.support.storing import Clock


@pytest.mark.parametrize(
    ("error", "code", "message", "logged"),
    [
        (StoreFullError("The disk is full."), RpcCode.RESOURCE_EXHAUSTED, "The disk is full.", False),
        (StoreStoppedError("It stopped."), RpcCode.UNAVAILABLE, "It stopped.", False),
        (ServerError("The store is closed."), RpcCode.INTERNAL, "Internal error encountered.", True),
        (sqlite3.OperationalError("locked"), RpcCode.INTERNAL, "Internal error encountered.", True),
        (OSError(errno.EIO, "broken"), RpcCode.INTERNAL, "Internal error encountered.", True),
        (ZeroDivisionError(), RpcCode.INTERNAL, "Internal error encountered.", True),
    ],
)
def test_a_failure_is_an_error_of_the_api(
    store: TaskStore,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    code: RpcCode,
    message: str,
    logged: bool,
) -> None:
    """A client gets a code, never a traceback; a defect is in the log."""
    api = Api(store, clock)
    api.make_queue()

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(store, "add", fail)
    with pytest.raises(ApiCallError) as caught:
        api.make_task(QUEUE)
    assert (caught.value.code, caught.value.message) == (code, message)
    assert bool(caplog.records) == logged


def test_every_method_has_its_own_url(store: TaskStore, clock: Clock) -> None:
    """No two methods answer the same request."""
    methods = Api(store, clock).methods.all
    names = {
        "parent": "projects/p/locations/l",
        "queue": "projects/p/locations/l/queues/q",
        "task": "projects/p/locations/l/queues/q/tasks/t",
    }
    urls = [
        *(f"{name}{suffix}" for name in names.values() for suffix in ("", "/queues", "/tasks", ":run", ":pause")),
        f"{names['queue']}/tasks:batchCreate",
        f"{names['queue']}/tasks:batchDelete",
        "projects/p/locations/l/cmekConfig",
        "projects/p/locations/l/operations/o",
        "projects/p/locations",
    ]
    for url in urls:
        for verb in ("GET", "POST", "PATCH", "DELETE"):
            assert len([one for one in methods if one.verb == verb and one.url.fullmatch(url)]) <= 1

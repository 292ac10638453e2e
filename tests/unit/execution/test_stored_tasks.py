"""Tests of tasks in flight: tasks that an older version of the package enqueued run on this one.

``data/tasks-0.1.0-dev.json`` has requests that commit 11c1529 made (``python -m tests.support.stored_tasks``). Don't
regenerate that file: it stands for the tasks that wait in queues while the package is updated.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import webob

from deferred_middleware import DeferredMiddleware
from deferred_middleware.config import process
from deferred_middleware.wire import protocol
from tests.support import sample
from tests.support.delivering import Response, request
from tests.support.stored_tasks import DEPLOYMENT, KINDS, SETTINGS, Request, enqueued
from tests.support.watching import other_pages

OLDER: dict[str, Request] = json.loads((Path(__file__).parent / "data" / "tasks-0.1.0-dev.json").read_text())


def deliver(task: Request, **changes: str) -> Response:
    """Deliver a task with some headers replaced; its signature is checked."""
    process._deployment = DEPLOYMENT
    delivered = webob.Request.blank(task["path"], method=task["method"], body=base64.b64decode(task["body"]))
    for name, value in {**task["headers"], **changes}.items():
        delivered.headers[name] = value
    return request(DeferredMiddleware(other_pages, settings=SETTINGS), delivered.environ)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_older_version_enqueued_runs(kind: str) -> None:
    """The function runs once with its arguments, in its namespace, and sees the task's queue and limits."""
    assert deliver(OLDER[kind]).status == 200
    assert sample.ran == [KINDS[kind][1]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_older_version_signed_is_checked(kind: str) -> None:
    """A stored request with another queue is refused, because its signature doesn't match."""
    assert deliver(OLDER[kind], **{protocol.QUEUE_NAME_HEADER: "another"}).status == 403
    assert sample.ran == []


def with_hosts_of_now(noted: Any) -> Any:
    """Return what a function notes, with the hostname that the local server has now: older ones had its address."""
    if isinstance(noted, dict):
        return {**noted, "host": noted["host"].replace("127.0.0.1", "localhost")}
    return noted


def test_what_is_enqueued_now_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that this version enqueues are of the same kinds as the stored ones, and run the same way."""
    tasks = enqueued(tmp_path / "tasks.sqlite", monkeypatch)

    assert tasks.keys() == OLDER.keys()
    assert {kind: deliver(task).status for kind, task in tasks.items()} == dict.fromkeys(KINDS, 200)
    assert sample.ran == [with_hosts_of_now(noted) for _, noted in KINDS.values()]

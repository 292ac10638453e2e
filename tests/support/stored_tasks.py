"""Tasks of every kind as the requests that deliver them: one version of the package enqueues them, another runs them.

``python -m tests.support.stored_tasks FILE`` enqueues one task of each kind through the local server's taskqueue API
and writes the requests with which the local server would deliver them. There a signature holds for ten years.
"""

from __future__ import annotations

import base64
import functools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, namespace_manager

from deferred_middleware import Settings, defer
from deferred_middleware.config import process
from deferred_middleware.config.process import Deployment, install_settings
from deferred_middleware.server.delivery.task_request import request_headers
from deferred_middleware.server.store.records import ClaimedTask
from tests.support import sample
from tests.support.storing import stored_tasks
from tests.support.taskqueueapi import DIRECTORY, Api

SETTINGS = Settings.from_environ(
    {"DEFERRED_SECRET_KEYS": "stored tasks: a key that is long enough", "DEFERRED_REQUIRE_SIGNATURE": "true"}
)
DEPLOYMENT = Deployment(service="default", version="local", application="shop", environment="localdev")
LONG_TEXT = "more than a task holds " * 6000
assert len(LONG_TEXT) > 102_400


def _in_namespace() -> None:
    namespace_manager.set_namespace("tenant")
    try:
        defer(sample.notes_its_circumstances)
    finally:
        namespace_manager.set_namespace("")


def _circumstances(**changes: Any) -> dict[str, Any]:
    usual = {"namespace": "", "queue": "default", "max_attempts": None, "retry_limit": None, "deadline_seconds": None}
    return {**usual, "host": "local.default.127.0.0.1:8080", "own_header": None, **changes}


Request = dict[str, Any]
"""A task and the request that delivers it: queue, name, method, path, headers, and the body in base64."""

KINDS: dict[str, tuple[Callable[[], object], object]] = {
    "function": (lambda: defer(sample.pair, 1, [2]), (1, [2])),
    "keyword arguments": (
        lambda: defer(sample.note, 1, two={"deep": (3, b"\xff")}, dritte="ä"),
        ((1,), {"two": {"deep": (3, b"\xff")}, "dritte": "ä"}),
    ),
    "bound method": (lambda: defer(sample.Mailer("ann").send, "bob"), ("ann", "bob")),
    "private method": (lambda: defer(sample.Mailer("ann").secrets()[0], "bob"), ("secret", "ann", "bob")),
    "class method": (lambda: defer(sample.Mailer.build, "bob"), ("Mailer", "bob")),
    "partial": (lambda: defer(functools.partial(sample.pair, 1), second=2), (1, 2)),
    "class": (lambda: defer(sample.Noting, "x"), ("made", "x")),
    "callable object": (lambda: defer(sample.Caller("c"), 1), ("c", 1)),
    "coroutine function": (lambda: defer(sample.coroutine, 1), ("awaited", 1)),
    "compressed": (lambda: defer(sample.pair, LONG_TEXT), (LONG_TEXT, None)),
    "named": (lambda: defer(sample.note, "named", _name="its-own-name"), (("named",), {})),
    "with an ETA": (lambda: defer(sample.note, "later", _countdown=3600), (("later",), {})),
    "with retry options": (
        lambda: defer(
            sample.notes_its_circumstances,
            _queue="other",
            _retry_options={"task_retry_limit": 7, "min_backoff_seconds": 1},
            _deadline=90,
            _max_attempts=5,
            _headers={"X-Own": "mine"},
        ),
        _circumstances(queue="other", retry_limit=7, deadline_seconds=90.0, max_attempts=5, own_header="mine"),
    ),
    "redacted": (lambda: defer(sample.sign_in, "ann", password="secret"), ("signed in", "ann", "secret")),
    "in a namespace": (_in_namespace, _circumstances(namespace="tenant")),
    "with a target": (
        lambda: defer(sample.notes_its_circumstances, _target="local.background"),
        _circumstances(host="local.background.127.0.0.1:8080"),
    ),
}
"""For each kind what enqueues a task, and what the task then notes in :data:`tests.support.sample.ran`."""


def enqueued(store: Path, patch: pytest.MonkeyPatch) -> dict[str, Request]:
    """Enqueue a task of each kind to a new store; return the requests that deliver them."""
    stub_map = apiproxy_stub_map.APIProxyStubMap()
    patch.setattr(apiproxy_stub_map, "apiproxy", stub_map)
    patch.setattr(process, "_deployment", DEPLOYMENT)
    patch.setenv("DEFAULT_VERSION_HOSTNAME", DIRECTORY.default_hostname)
    patch.setenv("HTTP_HOST", DIRECTORY.default_hostname)
    install_settings(SETTINGS)
    api = Api(store)
    try:
        stub_map.RegisterStub("taskqueue", api.service)
        requests = {}
        for kind, (enqueue, _) in KINDS.items():
            enqueue()
            (task,) = stored_tasks(api.store, limit=1)
            headers = request_headers(ClaimedTask(**vars(task), claim_token=0), DIRECTORY.host(task.target))
            requests[kind] = {
                "queue": task.queue,
                "name": task.name,
                "method": task.method,
                "path": task.url,
                "headers": dict(headers),
                "body": base64.b64encode(task.body).decode(),
            }
        return requests
    finally:
        api.store.close()


def main(file: str) -> None:
    """Write the requests to ``file``."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        requests = enqueued(Path(directory) / "tasks.sqlite", patch)
    Path(file).write_text(json.dumps(requests, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Tests of the templates for similar calls: a cached template never gives an outdated message."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub, apiproxy_stub_map, namespace_manager

from deferred_middleware import call
from deferred_middleware.calls.redaction import REDACT_ATTRIBUTE
from deferred_middleware.config import process
from deferred_middleware.config.process import install_settings
from deferred_middleware.enqueue import prepare as prepare_module
from deferred_middleware.enqueue.prepare import enqueue_context, prepare
from deferred_middleware.wire import protocol
from tests.support import sample

pytestmark = pytest.mark.usefixtures("engine")
KEYS = ("0123456789abcdef" * 4,)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start with an empty cache, and end in the default namespace."""
    monkeypatch.setattr(prepare_module, "_cache", ({}, None, None, None))
    yield
    namespace_manager.set_namespace("")


def facts(**options: Any) -> dict[str, Any]:
    """Return the parts of a new task's message that don't differ from task to task."""
    prepared = prepare(call(sample.note, **options))
    seen: list[Any] = []
    with recorded(seen):
        prepared.engine.start([prepared.message], None).results()
    (request,) = seen
    headers = {header.key.decode(): header.value.decode() for header in request.header}
    signature = headers.pop(protocol.SIGNATURE_HEADER, "")
    return {
        "queue": request.queue_name,
        "url": request.url,
        "target": prepared.task.target,
        "headers": headers,
        "retry": request.retry_parameters.retry_limit if request.HasField("retry_parameters") else None,
        "deadline": request.dispatch_deadline_usec,
        "key": signature[: signature.find(";i=")],
        "size": prepared.task.size - len(signature),
    }


@contextlib.contextmanager
def recorded(seen: list[Any]) -> Iterator[None]:
    """Append each sent task to ``seen``, and add none."""

    class Recording(apiproxy_stub.APIProxyStub):  # type: ignore[misc] # the SDK has no types
        def MakeSyncCall(self, service: str, method: str, request: Any, response: Any, request_id: Any = None) -> None:
            seen.extend(request.add_request)

    proxy = apiproxy_stub_map.apiproxy
    stub = proxy.GetStub("taskqueue")
    proxy.ReplaceStub("taskqueue", Recording("taskqueue"))
    try:
        yield
    finally:
        proxy.ReplaceStub("taskqueue", stub)


def change_settings(**changes: Any) -> None:
    """Change the settings of the process."""
    install_settings(dataclasses.replace(process.current_settings(), **changes))


def change_deployment(**changes: Any) -> None:
    """Change the deployment of the process."""
    process._deployment = dataclasses.replace(process._deployment, **changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda: namespace_manager.set_namespace("tenant"),
        lambda: os.environ.update(HTTP_HOST="other.example.com"),
        lambda: os.environ.update(HTTP_X_APPENGINE_DEFAULT_NAMESPACE="apps"),
        lambda: change_settings(url_prefix="/elsewhere"),
        lambda: change_settings(default_queues=("quick",)),
        lambda: change_settings(secret_keys=KEYS),
        lambda: change_deployment(service="worker", version="v2"),
        lambda: setattr(sample.note, REDACT_ATTRIBUTE, frozenset({"a"})),
        lambda: setattr(sample.note, "__qualname__", "renamed"),
    ],
    ids=["namespace", "host", "default namespace", "prefix", "queue", "key", "service", "redact", "name"],
)
def test_a_change_shows_in_the_next_task(change: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change that affects tasks, the next task is the same as with an empty cache."""
    change_settings(secret_keys=("f" * 64,))
    monkeypatch.setattr(sample.note, "__qualname__", "note")
    monkeypatch.setattr(sample, "renamed", sample.note, raising=False)
    monkeypatch.setattr(sample.note, REDACT_ATTRIBUTE, frozenset(), raising=False)
    before = [facts() for _ in range(4)]

    change()
    after = facts()
    prepare_module._cache[0].clear()

    assert before[0] == before[1] == before[2] == before[3]
    assert after == facts()
    assert after != before[0]


def test_another_hostname_shows_in_the_next_task() -> None:
    """A target uses the hostname that is current when the task is enqueued."""
    change_deployment(service="default", version="v1")
    before = [facts() for _ in range(2)]

    os.environ["DEFAULT_VERSION_HOSTNAME"] = "example.com"

    assert [each["headers"]["Host"] for each in before] == ["v1.default.app.example.com"] * 2
    assert facts()["headers"]["Host"] == "v1.default.example.com"


@pytest.mark.parametrize(
    "options",
    [
        {"_target": "v2.worker"},
        {"_target": "worker"},
        {"_url": "/mine"},
        {"_queue": "quick"},
        {"_deadline": 60},
        {"_max_attempts": 3},
        {"_retry_options": {"task_retry_limit": 3}},
        {"_retry_options": {"task_retry_limit": 4}},
        {"_headers": {"X-Colour": "blue"}},
        {"_countdown": 60},
        {"_name": "mine"},
    ],
    ids=str,
)
def test_options_show_in_the_task(options: dict[str, Any]) -> None:
    """Calls with and without options alternate, and each gets only its own options."""
    change_deployment(service="default", version="v1")
    plain = facts()
    with_options = facts(**options)
    others = [(facts(), facts(**options)) for _ in range(3)]

    def steady(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "headers": {k: v for k, v in found["headers"].items() if k != protocol.ENQUEUED_HEADER}}

    assert all(steady(first) == steady(plain) for first, _ in others)
    assert all(steady(second) == steady(with_options) for _, second in others)
    assert (with_options == plain) is ("_countdown" in options)


def test_each_task_is_its_own() -> None:
    """Tasks of one template have different names, payloads, ETAs and signatures."""
    change_settings(secret_keys=KEYS)

    tasks = [prepare(call(sample.note, number, _countdown=number)).task for number in range(1, 6)]

    assert len({task.name for task in tasks}) == 5
    assert len({task.payload for task in tasks}) == 5
    assert len({task.headers[protocol.SIGNATURE_HEADER] for task in tasks}) == 5
    waits = [later.eta_posix - earlier.eta_posix for earlier, later in itertools.pairwise(tasks)]
    assert waits == pytest.approx([1] * 4, abs=0.5)


def test_templates_are_not_kept_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache has a limit, so an app with one namespace per user doesn't fill its memory."""
    monkeypatch.setattr(prepare_module, "MAX_TEMPLATES", 10)

    for number in range(35):
        namespace_manager.set_namespace(f"user{number}")
        prepare(call(sample.note))

    assert 1 <= len(prepare_module._cache[0]) <= 10


def test_only_calls_that_others_resemble_have_a_kept_template() -> None:
    """The template of a call with its own name or headers is not cached, because no other call can use it."""
    context = enqueue_context()

    assert prepare_module._key_of(call(sample.note), "default", context) is not None
    assert prepare_module._key_of(call(sample.note, _name="mine"), "default", context) is None
    assert prepare_module._key_of(call(sample.note, _headers={"X-Mine": "1"}), "default", context) is None

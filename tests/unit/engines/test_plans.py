"""Tests of what enqueueing computes once and keeps: it still holds after a change of settings or callable."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.appengine.api import namespace_manager, taskqueue

from deferred_middleware import Settings, call
from deferred_middleware.calls.options import NO_OPTIONS
from deferred_middleware.calls.redaction import REDACT_ATTRIBUTE
from deferred_middleware.config import settings as settings_module
from deferred_middleware.config.settings import install_settings
from deferred_middleware.engines import moulds
from deferred_middleware.enqueue import plans
from deferred_middleware.enqueue.prepare import prepare
from deferred_middleware.wire import protocol
from tests.support import sample

pytestmark = pytest.mark.usefixtures("engine")
KEYS = ("0123456789abcdef" * 4,)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start without plans, and end in the default namespace."""
    monkeypatch.setattr(plans, "_plans", {})
    yield
    namespace_manager.set_namespace("")


def facts(**options: Any) -> dict[str, Any]:
    """Return what a task is that is prepared now."""
    prepared = prepare(call(sample.note, **options))
    task = prepared.task
    headers = dict(task.headers)
    signature = headers.pop(protocol.SIGNATURE_HEADER, "")
    return {
        "queue": prepared.queue,
        "url": task.url,
        "target": task.target,
        "headers": headers,
        "retry": task.retry_options and task.retry_options.task_retry_limit,
        "deadline": task.dispatch_deadline_usec,
        "key": signature[: signature.find(";i=")],
        "size": task.size - len(signature),
    }


def change_settings(**changes: Any) -> None:
    """Change the process's settings."""
    install_settings(dataclasses.replace(settings_module.current_settings(), **changes))


def change_deployment(**changes: Any) -> None:
    """Change what is known of the process's service."""
    settings_module._deployment = dataclasses.replace(settings_module._deployment, **changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda: namespace_manager.set_namespace("tenant"),
        lambda: os.environ.update(HTTP_HOST="other.example.com"),
        lambda: os.environ.update(DEFAULT_VERSION_HOSTNAME="example.com"),
        lambda: os.environ.update(HTTP_X_APPENGINE_DEFAULT_NAMESPACE="apps"),
        lambda: change_settings(url_prefix="/elsewhere"),
        lambda: change_settings(default_queues=("quick",)),
        lambda: change_settings(secret_keys=KEYS),
        lambda: change_deployment(service="worker", version="v2"),
        lambda: setattr(sample.note, REDACT_ATTRIBUTE, frozenset({"a"})),
        lambda: setattr(sample.note, "__qualname__", "renamed"),
    ],
    ids=["namespace", "host", "hostname", "default namespace", "prefix", "queue", "key", "service", "redact", "name"],
)
def test_a_change_shows_in_the_next_task(change: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of what a task tells, the next one tells it, as if none had been made before."""
    change_settings(secret_keys=("f" * 64,))
    monkeypatch.setattr(sample.note, "__qualname__", "note")
    monkeypatch.setattr(sample, "renamed", sample.note, raising=False)
    monkeypatch.setattr(sample.note, REDACT_ATTRIBUTE, frozenset(), raising=False)
    before = [facts() for _ in range(4)]

    change()
    after = facts()
    plans._plans.clear()

    assert before[0] == before[1] == before[2] == before[3]
    assert after == facts()
    assert after != before[0]


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
    """Calls with options get tasks with them, and calls without get none of theirs, however often they alternate."""
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
    """Names, payloads, ETAs and signatures differ between tasks of one plan."""
    change_settings(secret_keys=KEYS)

    tasks = [prepare(call(sample.note, number, _countdown=number)).task for number in range(1, 6)]

    assert len({task.name for task in tasks}) == 5
    assert len({task.payload for task in tasks}) == 5
    assert len({task.headers[protocol.SIGNATURE_HEADER] for task in tasks}) == 5
    waits = [later.eta_posix - earlier.eta_posix for earlier, later in itertools.pairwise(tasks)]
    assert waits == pytest.approx([1] * 4, abs=0.5)


def test_where_copies_are_not_the_same_the_constructor_makes_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another version of the SDK tasks are as before."""
    monkeypatch.setattr(moulds.Mould, "fits", lambda self, make: False)
    monkeypatch.setattr(moulds.Mould, "cast", None)

    found = [facts() for _ in range(4)]

    assert found[0] == found[3]


def test_an_instrumented_constructor_sees_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever puts something in place of the SDK's constructor is asked for each task from then on."""
    for _ in range(4):
        facts()
    seen = []
    of_the_sdk = taskqueue.Task.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        of_the_sdk(self, *args, **kwargs)
        seen.append(kwargs["name"])

    monkeypatch.setattr(taskqueue.Task, "__init__", init)
    names = [prepare(call(sample.note)).task.name for _ in range(5)]

    assert [name for name in seen if name in names] == names


def test_plans_are_not_kept_without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app that has a namespace for each of its users does not fill its memory with plans."""
    monkeypatch.setattr(plans, "_MOST_PLANS", 10)

    for number in range(35):
        namespace_manager.set_namespace(f"user{number}")
        prepare(call(sample.note))

    assert 1 <= len(plans._plans) <= 10


def test_the_settings_defaults_are_the_same() -> None:
    """A call without options shares its plan with nobody who has some."""
    assert plans._differing(NO_OPTIONS) == ()
    assert plans._differing(dataclasses.replace(NO_OPTIONS, name="mine")) is None
    assert Settings().url_prefix == "/_cb/deferred"

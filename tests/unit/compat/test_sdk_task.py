"""Tests of the SDK's task that ``compat.deferred.defer`` returns."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import pytest
from google.appengine.api import taskqueue

from deferred_middleware import Settings, defer_batch
from deferred_middleware.compat import deferred
from deferred_middleware.compat.sdk_task import SdkTask
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.process import install_settings
from tests.support import sample
from tests.support.delivering import Queued

ETA = datetime.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.timezone.utc)


@dataclasses.dataclass(kw_only=True)
class Added:
    """A task as an engine returns it, with the SDK's attribute names."""

    name: str | None = "one"
    queue_name: str = "mail"
    was_enqueued: bool = True
    method: str = "POST"
    url: str = "/_cb/deferred/sample/note"
    headers: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"X-Mine": "1"})
    payload: bytes = b"payload"
    size: int = 300
    target: str | None = None
    eta: datetime.datetime = ETA
    retry_options: taskqueue.TaskRetryOptions | None = None
    dispatch_deadline_usec: int | None = None


def convert(**values: Any) -> SdkTask:
    """Return the SDK's task for an added task with these values."""
    added: Any = Added(**values)
    return SdkTask(added)


@pytest.mark.usefixtures("engine")
class TestConversion:
    """The attributes of the SDK's task for an added task."""

    def test_it_has_the_attributes_of_the_task(self) -> None:
        """The result has the SDK's own type, and its properties have the values of the added task."""
        options = taskqueue.TaskRetryOptions(task_retry_limit=3)

        task = convert(retry_options=options, dispatch_deadline_usec=60_000_000)

        assert isinstance(task, taskqueue.Task)
        assert (task.name, task.queue_name, task.was_enqueued, task.was_deleted) == ("one", "mail", True, False)
        assert (task.method, task.url, task.payload, task.size) == ("POST", Added().url, b"payload", 300)
        assert (task.eta, task.eta_posix) == (ETA, ETA.timestamp())
        assert (task.headers["X-Mine"], task.retry_options) == ("1", options)
        assert (task.dispatch_deadline_usec, task.retry_count, task.tag) == (60_000_000, 0, None)
        assert "name='one'" in repr(task)
        assert "was_enqueued=True" in repr(task)

    def test_a_target_is_the_host(self) -> None:
        """The task's target and the host of its request agree."""
        task = convert(target="v1.background")

        assert (task.target, task.headers["Host"]) == ("v1.background", "v1.background.app.example.com")

    def test_a_host_is_kept(self) -> None:
        """If the headers have a host, the target is derived from it."""
        task = convert(target="v1.background", headers={"host": "v1.background.app.example.com"})

        assert (task.target, task.headers["host"]) == ("v1.background", "v1.background.app.example.com")

    def test_a_target_without_a_hostname(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If the app's hostname is unknown, the task has its target and no host."""
        monkeypatch.delenv("DEFAULT_VERSION_HOSTNAME")

        task = convert(target="v1.background")

        assert task.target == "v1.background"
        assert "Host" not in task.headers

    def test_it_may_be_larger_than_the_sdk_allows(self) -> None:
        """The task may exceed the SDK's size limit, because the engine has already accepted it."""
        task = convert(payload=b"x" * 200_000, size=200_300)

        assert (len(task.payload or b""), task.size) == (200_000, 200_300)

    def test_it_follows_the_task(self) -> None:
        """Name and state follow the original task, because a batch adds its tasks later."""
        added: Any = Added(name=None, was_enqueued=False)
        task = SdkTask(added)
        assert (task.name, task.was_enqueued) == (None, False)

        added.name, added.was_enqueued = "two", True

        assert (task.name, task.was_enqueued) == ("two", True)

    def test_it_is_not_added_again(self) -> None:
        """The SDK refuses to add the task again."""
        with pytest.raises(taskqueue.BadTaskStateError):
            convert().add("mail")


def test_defer_returns_the_sdks_task(queued: Queued) -> None:
    """The module's ``defer`` returns an SDK task, which the SDK can delete."""
    task = deferred.defer(sample.note, 1, _queue="quick")

    assert isinstance(task, taskqueue.Task)
    assert (task.queue_name, task.was_enqueued) == ("quick", True)
    taskqueue.Queue("quick").delete_tasks(task)
    assert task.was_deleted


def test_its_text_does_not_show_the_signature(queued: Queued) -> None:
    """Public apps answer requests with the text of the task, which is that of the SDK without the signature."""
    install_settings(Settings(secret_keys=(SecretKey("k" * 32),)))
    task = deferred.defer(sample.note, "shown")
    signature = task.headers["X-Deferred-Signature"]

    assert len(signature) == 212
    assert signature not in repr(task) + str(task) + f"{task}"
    assert "'X-Deferred-Signature': '(not shown)'" in repr(task)
    assert repr(task).startswith("Task<eta=")
    assert repr(task.name) in repr(task)


def test_defer_in_a_batch(queued: Queued) -> None:
    """In a batch the task is enqueued when the batch ends."""
    with defer_batch():
        task = deferred.defer(sample.note, 1)
        assert not task.was_enqueued

    assert task.was_enqueued
    assert task.name

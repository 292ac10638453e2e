"""Tests of the copied task: it is what the SDK's constructor would have made."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, taskqueue
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.ext import testbed
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware import defer
from deferred_middleware.config.settings import current_settings, install_settings
from deferred_middleware.engines import moulds
from deferred_middleware.engines.moulds import Mould, mould_of
from tests.support import sample

pytestmark = pytest.mark.usefixtures("engine")
HEADER = "X-Deferred-Signature"
RETRY_OPTIONS = taskqueue.TaskRetryOptions(task_retry_limit=3)
PUBLIC = ("name", "payload", "url", "headers", "eta", "eta_posix", "size", "target", "method", "retry_options")


def make(*, name: str | None, payload: bytes, eta_posix: float | None, value: str | None) -> taskqueue.Task:
    """Make a task with the constructor."""
    eta = None if eta_posix is None else datetime.datetime.fromtimestamp(eta_posix, datetime.timezone.utc)
    headers = {"Content-Type": "application/octet-stream", "X-Colour": "blue"}
    return taskqueue.Task(
        name=name,
        payload=payload,
        url="/_cb/deferred/m/f",
        headers=headers if value is None else {**headers, HEADER: value},
        eta=eta,
        target="v1.worker",
        retry_options=RETRY_OPTIONS,
        _size_check=False,
    )


whatever_differs = given(
    name=st.none() | st.from_regex(r"[a-zA-Z0-9_-]{1,40}", fullmatch=True),
    payload=st.binary(max_size=200),
    eta_posix=st.floats(min_value=0, max_value=1_790_000_000),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
)


@whatever_differs
def test_a_copy_is_what_the_constructor_makes(name: str | None, payload: bytes, eta_posix: float, value: str) -> None:
    """Whatever differs, all that can be asked of the task is the same, and what is sent of it."""
    bed = testbed.Testbed()
    bed.activate()
    bed.setup_env(DEFAULT_VERSION_HOSTNAME="app.example.com", HTTP_HOST="app.example.com", overwrite=True)
    try:
        mould = mould_of(make, HEADER)
        assert mould is not None

        draft = mould.cast(name, payload, round(eta_posix, 6), value)
        cast = draft.task
        made = make(name=name, payload=payload, eta_posix=eta_posix, value=value)
    finally:
        bed.deactivate()

    known = [field for field in PUBLIC if field not in ("eta", "eta_posix")]
    assert [getattr(cast, field) for field in known] == [getattr(made, field) for field in known]
    assert cast._eta_usec == made._eta_usec
    assert draft.size_bytes == made.size
    assert type(cast) is taskqueue.Task


def test_copies_are_apart() -> None:
    """What happens to one task shows in no other."""
    mould = mould_of(make, HEADER)
    assert mould is not None

    def cast() -> taskqueue.Task:
        return mould.cast(None, b"x", 1.0, "v").task

    first = cast()
    first.headers["X-Colour"] = "red"
    first.add("default")

    assert first.was_enqueued
    second = cast()
    assert not second.was_enqueued
    assert second.name is None
    assert second.headers["X-Colour"] == "blue"
    second.add("default")
    assert second.name != first.name


def sent_by_the_sdk(task: taskqueue.Task) -> taskqueue_pb.TaskQueueAddRequest:
    """Return what the SDK's own add puts on the wire for ``task``."""
    sent = []

    def watch(service: str, call: str, request: Any, response: Any) -> None:
        # A copy, because the stub writes the names that it chooses into the request.
        sent.append(taskqueue_pb.TaskQueueAddRequest.FromString(request.add_request[0].SerializeToString()))

    apiproxy_stub_map.apiproxy.GetPreCallHooks().Append("watch", watch, "taskqueue")
    task.add("images")
    return sent[0]


@whatever_differs
def test_a_message_is_what_the_sdk_sends(name: str | None, payload: bytes, eta_posix: float, value: str) -> None:
    """Whatever differs, the queue is told what the SDK's own add would tell it, and the task knows the same then."""
    bed = testbed.Testbed()
    bed.activate()
    bed.init_taskqueue_stub(_all_queues_valid=True)
    bed.setup_env(DEFAULT_VERSION_HOSTNAME="app.example.com", HTTP_HOST="app.example.com", overwrite=True)
    try:
        mould = mould_of(make, HEADER, "images")
        assert mould is not None
        draft = mould.cast(name, payload, round(eta_posix, 6), value)
        message = taskqueue_pb.TaskQueueAddRequest()
        assert draft.fill(message)
        made = make(name=name, payload=payload, eta_posix=eta_posix, value=value)

        assert message == sent_by_the_sdk(made)
    finally:
        bed.deactivate()

    early = draft.task if payload else None  # somebody has looked at it before
    draft.added("images", None if name else made.name)
    assert draft.task is (early or draft.task)
    assert (draft.task.name, draft.task.queue_name, draft.task.was_enqueued) == (made.name, "images", True)


@pytest.mark.parametrize("what", ["another attribute", "no such attribute", "another way to count"])
def test_another_sdk_is_found_out(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Where a copy would not be the same, there is no mould."""
    of_the_sdk = taskqueue.Task.__init__

    def init(self: Any, payload: Any = None, **kwargs: Any) -> None:
        of_the_sdk(self, payload, **kwargs)
        if what == "another attribute":
            self.__dict__["_Task__digest"] = hash(payload)
        else:
            self.__dict__["_Task__header_pairs"] = self.__dict__.pop("_Task__headers_list")

    if what == "another way to count":
        size = taskqueue.Task.size.fget
        monkeypatch.setattr(taskqueue.Task, "size", property(lambda self: size(self) + len(self.payload)))
    else:
        monkeypatch.setattr(taskqueue.Task, "__init__", init)
        if what == "no such attribute":
            monkeypatch.setattr(taskqueue.Task, "size", property(lambda self: len(self.payload)))

    assert mould_of(make, HEADER) is None


def test_a_mould_that_casts_wrongly_does_not_fit() -> None:
    """It is compared with the constructor's work, and not believed."""

    def forgetful(**kwargs: Any) -> taskqueue.Task:
        return make(**{**kwargs, "name": f"x{kwargs['name']}"})

    assert not Mould(forgetful, HEADER).fits(forgetful)


@pytest.mark.parametrize("what", ["another field", "another name when added"])
def test_another_add_is_found_out(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Where the SDK's add would send or do something else, there is no mould for it."""
    assert mould_of(make, HEADER, "images") is not None
    monkeypatch.setattr(moulds, "_sent", lambda queue, tasks: Other(queue, tasks))

    class Other(moulds._Recorder):
        def __init__(self, queue: str, tasks: list[Any]) -> None:
            taskqueue.Queue(queue).add_async(tasks, rpc=self)
            self.task = tasks[0]
            if what == "another field":
                self.request.add_request[0].tag = bytes(self.task.payload)

        def answer(self) -> None:
            super().answer()
            if what == "another name when added":
                vars(self.task)["_Task__added_at"] = self.task.eta

    assert mould_of(make, HEADER, "images") is None


def test_whoever_watches_the_sdk_s_add_goes_on_seeing_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where somebody has replaced it, before or after the first tasks, it is given every task."""
    seen: list[object] = []
    of_the_sdk = taskqueue.Queue.add_async

    @functools.wraps(of_the_sdk)
    def watched(queue: Any, task: Any, transactional: bool = False, rpc: Any = None) -> Any:
        seen.append(task)
        return of_the_sdk(queue, task, transactional, rpc)

    for _ in range(3):
        defer(sample.note)
    with monkeypatch.context() as patch:
        patch.setattr(taskqueue.Queue, "add_async", watched)
        for _ in range(3):
            defer(sample.note)
        assert len(seen) == 3
        seen.clear()
        install_settings(dataclasses.replace(current_settings()))  # so that everything is worked out anew
        for _ in range(5):
            defer(sample.note)
    assert len(seen) == 5

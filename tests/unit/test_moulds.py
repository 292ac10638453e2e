"""Tests of moulds.py: a copy of a task is what the SDK's constructor would have made."""

from __future__ import annotations

import datetime
import time
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, taskqueue
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.ext import testbed
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.moulds import Mould, mould_of

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


@given(
    name=st.none() | st.from_regex(r"[a-zA-Z0-9_-]{1,40}", fullmatch=True),
    payload=st.binary(max_size=200),
    eta_posix=st.floats(min_value=0, max_value=1_790_000_000),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
)
def test_a_copy_is_what_the_constructor_makes(name: str | None, payload: bytes, eta_posix: float, value: str) -> None:
    """Whatever differs, all that can be asked of the task is the same, and what is sent of it."""
    bed = testbed.Testbed()
    bed.activate()
    bed.setup_env(DEFAULT_VERSION_HOSTNAME="app.example.com", HTTP_HOST="app.example.com", overwrite=True)
    try:
        mould = mould_of(make, HEADER)
        assert mould is not None

        draft = mould.cast(name=name, payload=payload, eta_posix=eta_posix, value=value)
        cast = draft.task
        made = make(name=name, payload=payload, eta_posix=eta_posix, value=value)
    finally:
        bed.deactivate()

    known = [field for field in PUBLIC if field not in ("eta", "eta_posix")]
    assert [getattr(cast, field) for field in known] == [getattr(made, field) for field in known]
    assert cast._eta_usec == made._eta_usec
    assert draft.size_bytes == made.size
    assert type(cast) is taskqueue.Task


def test_without_an_eta_it_is_due_now() -> None:
    """Its ETA is the time at which it is made, as the constructor has it."""
    mould = mould_of(make, None)
    assert mould is not None

    before = time.time()
    cast = mould.cast(name=None, payload=b"", eta_posix=None, value=None).task

    assert before <= cast.eta_posix <= time.time()
    assert HEADER not in cast.headers


def test_copies_are_apart() -> None:
    """What happens to one task shows in no other."""
    mould = mould_of(make, HEADER)
    assert mould is not None

    def cast() -> taskqueue.Task:
        return mould.cast(name=None, payload=b"x", eta_posix=None, value="v").task

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


@given(
    name=st.none() | st.from_regex(r"[a-zA-Z0-9_-]{1,40}", fullmatch=True),
    payload=st.binary(max_size=200),
    eta_posix=st.floats(min_value=0, max_value=1_790_000_000),
    value=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
)
def test_a_message_is_what_the_sdk_sends(name: str | None, payload: bytes, eta_posix: float, value: str) -> None:
    """Whatever differs, the queue is told what the SDK's own add would tell it, and the task knows the same then."""
    bed = testbed.Testbed()
    bed.activate()
    bed.init_taskqueue_stub(_all_queues_valid=True)
    bed.setup_env(DEFAULT_VERSION_HOSTNAME="app.example.com", HTTP_HOST="app.example.com", overwrite=True)
    try:
        mould = mould_of(make, HEADER, "images")
        assert mould is not None
        draft = mould.cast(name=name, payload=payload, eta_posix=eta_posix, value=value)
        message = taskqueue_pb.TaskQueueAddRequest()
        draft.fill(message)
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
    of_the_sdk = taskqueue.Queue.add_async

    def add_async(self: Any, tasks: Any, transactional: bool = False, rpc: Any = None) -> Any:
        made = of_the_sdk(self, tasks, transactional, rpc)
        if what == "another field":
            rpc.request.add_request[0].tag = bytes(tasks[0].payload)
        else:
            of_the_sdk_read = rpc._read

            def read(rpc: Any) -> None:
                of_the_sdk_read(rpc)
                vars(tasks[0])["_Task__added_at"] = tasks[0].eta

            rpc._read = read
        return made

    assert mould_of(make, HEADER, "images") is not None
    monkeypatch.setattr(taskqueue.Queue, "add_async", add_async)

    assert mould_of(make, HEADER, "images") is None

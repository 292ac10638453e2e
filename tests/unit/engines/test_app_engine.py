"""Tests of the App Engine engine: it sends the same messages as the SDK's own add."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub, apiproxy_stub_map, taskqueue
from google.appengine.ext import testbed
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.engines.app_engine import AppEngineEngine
from deferred_middleware.engines.engine import TaskMessage, TaskTemplate
from deferred_middleware.wire import protocol

pytestmark = pytest.mark.usefixtures("engine")
HEADERS = {"Content-Type": "application/octet-stream", "X-Colour": "blue"}
RETRY_OPTIONS = taskqueue.TaskRetryOptions(
    task_retry_limit=3, task_age_limit=60, min_backoff_seconds=0.5, max_backoff_seconds=2.5, max_doublings=4
)


class Recording(apiproxy_stub.APIProxyStub):  # type: ignore[misc] # the SDK has no types
    """A taskqueue stub that records what is sent, and answers that it was added."""

    def __init__(self) -> None:
        super().__init__("taskqueue")
        self.requests: list[Any] = []

    def MakeSyncCall(self, service: str, method: str, request: Any, response: Any, request_id: Any = None) -> None:
        """Record the tasks of a BulkAdd."""
        assert (service, method) == ("taskqueue", "BulkAdd")
        for add in request.add_request:
            self.requests.append(add)
            result = response.taskresult.add()
            result.result = 0
            if not add.task_name:
                result.chosen_task_name = b"chosen"


@contextlib.contextmanager
def in_request(**environ: str) -> Iterator[Recording]:
    """Run the block in a request of an app, and record its queue."""
    bed = testbed.Testbed()
    bed.activate()
    variables = {"DEFAULT_VERSION_HOSTNAME": "app.example.com", "HTTP_HOST": "www.example.com", **environ}
    bed.setup_env(**variables, overwrite=True)
    recording = Recording()
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", recording)
    try:
        yield recording
    finally:
        bed.deactivate()


def add_both(
    recording: Recording,
    *,
    name: str | None,
    body: bytes,
    eta_posix: float,
    signature: str | None,
    target: str | None = None,
    retry_options: Any = None,
    deadline_seconds: float | None = None,
) -> tuple[Any, Any]:
    """Add a task through the engine and through the SDK. Check that the sizes are equal, and return both messages."""
    engine = AppEngineEngine()
    template = engine.encode(
        TaskTemplate(
            queue="slow",
            path="/_cb/deferred/m/f",
            headers=HEADERS,
            signed=signature is not None,
            target=target,
            retry_options=retry_options,
            deadline_seconds=deadline_seconds,
        )
    )
    message = TaskMessage(template, name, body, eta_posix, signature)
    assert list(engine.start([message], None).results()) == [name or "chosen"]
    headers = HEADERS if signature is None else {**HEADERS, protocol.SIGNATURE_HEADER: signature}
    task = taskqueue.Task(
        name=name,
        payload=body,
        url="/_cb/deferred/m/f",
        headers=headers,
        eta=datetime.datetime.fromtimestamp(eta_posix, datetime.timezone.utc),
        target=target,
        retry_options=retry_options,
        dispatch_deadline_usec=None if deadline_seconds is None else round(deadline_seconds * 1e6),
    )
    task.add("slow")
    assert message.size_bytes == task.size
    ours, the_sdks = recording.requests
    return ours, the_sdks


@given(
    name=st.none() | st.from_regex(r"[a-zA-Z0-9_-]{1,40}", fullmatch=True),
    body=st.binary(max_size=200),
    eta_posix=st.integers(0, 1_790_000_000_000_000).map(lambda usec: usec / 1e6),
    signature=st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=200),
    target=st.sampled_from([None, "worker", "v1.worker", "0.v1.worker"]),
    retry_options=st.sampled_from([None, RETRY_OPTIONS, taskqueue.TaskRetryOptions()]),
    deadline_seconds=st.none() | st.floats(15, 86_400),
)
def test_a_message_is_what_the_sdk_sends(**facts: Any) -> None:
    """For any combination of options, the message and its size are those of the SDK."""
    with in_request() as recording:
        ours, the_sdks = add_both(recording, **facts)

    assert ours == the_sdks


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"HTTP_X_APPENGINE_DEFAULT_NAMESPACE": "apps"},
        {"HTTP_X_APPENGINE_CURRENT_NAMESPACE": "tenant"},
        {"HTTP_HOST": "v2-dot-app.example.com"},
        {"DEFAULT_VERSION_HOSTNAME": "app.ew.r.appspot.com"},
    ],
    ids=str,
)
@pytest.mark.parametrize("target", [None, "v1.worker"])
def test_what_comes_from_the_request_is_the_same(environ: dict[str, str], target: str | None) -> None:
    """The message has the same hostnames and namespaces of the request as the SDK's message."""
    with in_request(**environ) as recording:
        ours, the_sdks = add_both(
            recording, name="n", body=b"b", eta_posix=1.5, signature="s", target=target, deadline_seconds=None
        )

    assert ours == the_sdks

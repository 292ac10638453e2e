"""Calls that are deferred in other threads of a request, as ``async def`` views do, with the SDK's own state."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.appengine.runtime import default_api_stub, request_environment

from deferred_middleware.engines import request_scope

STUB = default_api_stub.DefaultApiStub
CURRENT = request_environment.current_request


@pytest.fixture
def request_state() -> Iterator[dict[str, str]]:
    """The state that wrap_wsgi_app gives this thread for a request: its environment and its ticket."""
    environ = {"HTTP_X_APPENGINE_API_TICKET": "a-ticket"}
    CURRENT.Init(None, environ)
    STUB.SetUseRequestSecurityTicketForThread(True)
    yield environ
    CURRENT.Clear()
    STUB.SetUseRequestSecurityTicketForThread(False)


def in_thread(function: Callable[[], Any]) -> Any:
    """Call ``function`` in a new thread with this thread's context, as asgiref does."""
    results: list[Any] = []
    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: results.append(context.run(function)))
    thread.start()
    thread.join()
    return results[0]


def seen() -> tuple[dict[str, str], bool]:
    """Return the state of this thread's request."""
    return dict(CURRENT.environ), STUB.ShouldUseRequestSecurityTicketForThread()


@pytest.mark.skipif(not request_scope.LOSES_REQUESTS, reason="the SDK passes the request on to threads")
def test_a_thread_with_the_context_gets_the_request_back(request_state: dict[str, str]) -> None:
    """In a thread with the request's context, a decorated function has the request's state, and only it has."""
    look = request_scope.in_request(seen)

    @request_scope.keeping_request
    def respond() -> Any:
        return in_thread(lambda: [seen(), look(), seen()])

    assert respond() == [({}, False), (request_state, True), ({}, False)]
    assert in_thread(look) == ({}, False)  # the request has ended

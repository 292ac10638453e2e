"""The request that code runs in, handed on to another thread.

The SDK keeps what it knows of a request in context variables, in a thread-local copy of ``os.environ``, and in a
thread-local flag that lets the thread use the request's API ticket (SDK: ``runtime/middlewares.py``,
``runtime/request_environment.py``, ``runtime/default_api_stub.py``). A thread that is to call the SDK's services for a
request needs all three.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from google.appengine.runtime import default_api_stub, request_environment

P = ParamSpec("P")
T = TypeVar("T")


class Scope:
    """What the current thread knows of its request. The request must still be going on when it is used."""

    __slots__ = ("_context", "_request", "_ticket")

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        current = request_environment.current_request
        self._request = (current.errors, current.environ, current.runtime_stats)
        self._ticket = default_api_stub.DefaultApiStub.ShouldUseRequestSecurityTicketForThread()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in this thread as if it were in the request."""
        return self._context.copy().run(functools.partial(self._run, function, *args, **kwargs))

    def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        current, stub = request_environment.current_request, default_api_stub.DefaultApiStub
        before = (current.errors, current.environ, current.runtime_stats)
        ticket_before = stub.ShouldUseRequestSecurityTicketForThread()
        current.errors, current.environ, current.runtime_stats = self._request
        stub.SetUseRequestSecurityTicketForThread(self._ticket)
        try:
            return function(*args, **kwargs)
        finally:
            current.errors, current.environ, current.runtime_stats = before
            stub.SetUseRequestSecurityTicketForThread(ticket_before)

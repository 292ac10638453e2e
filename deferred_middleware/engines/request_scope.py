"""What a thread needs of a request to call the SDK's services, and how it gets into another thread.

The SDK keeps the state of a request in context variables, in a thread-local copy of ``os.environ``, and in a
thread-local flag that lets the thread use the request's API ticket (SDK: ``runtime/middlewares.py``,
``runtime/request_environment.py``, ``runtime/default_api_stub.py``). To call the SDK's services for a request, another
thread needs all three. :class:`Scope` has them, for a thread of ours.

A thread that the app starts gets them from the SDK, which replaces the function that starts threads. Python 3.13 starts
threads in another way (``threading.Thread.start``), so nothing is passed on. ``asgiref`` runs the ``async def`` views
of Flask and Django in such a thread. It passes the context variables on, as many libraries do. So
:func:`keeping_request` puts the state of the request into a context variable, and :func:`in_request` restores it while
we use the SDK. A process without the SDK has no such state.
"""

from __future__ import annotations

import contextvars
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

from deferred_middleware.errors.sdk_types import HAS_SDK

P = ParamSpec("P")
T = TypeVar("T")

LOSES_REQUESTS: Final = sys.version_info >= (3, 13)
"""Whether the threads that a request starts lack its state."""

# wrap_wsgi_app imports it.
_STUB_MODULE: Final = "google.appengine.runtime.default_api_stub"


class RequestState:
    """The thread-local part of the current request's state. Use it only before the request ends."""

    __slots__ = ("_request", "has_ticket")
    _request: tuple[Any, Any, Any] | None
    has_ticket: bool

    def __init__(self) -> None:
        self._request, self.has_ticket = None, False
        if not HAS_SDK:
            return
        current, stub = _sdk()
        self._request = (current.errors, current.environ, current.runtime_stats)
        self.has_ticket = stub.ShouldUseRequestSecurityTicketForThread()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in this thread with the state, and with this thread's own context."""
        if self._request is None:
            return function(*args, **kwargs)
        current, stub = _sdk()
        before = (current.errors, current.environ, current.runtime_stats)
        ticket_before = stub.ShouldUseRequestSecurityTicketForThread()
        current.errors, current.environ, current.runtime_stats = self._request
        stub.SetUseRequestSecurityTicketForThread(self.has_ticket)
        try:
            return function(*args, **kwargs)
        finally:
            current.errors, current.environ, current.runtime_stats = before
            stub.SetUseRequestSecurityTicketForThread(ticket_before)


class Scope:
    """The current thread's request state with its context. Use it only before the request ends."""

    __slots__ = ("_context", "_state")

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._state = RequestState()

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` in this thread as if it were in the request."""
        return self._context.copy().run(functools.partial(self._state.run, function, *args, **kwargs))


_kept: contextvars.ContextVar[RequestState | None] = contextvars.ContextVar(
    "deferred_middleware.request_scope", default=None
)


def keeping_request(respond: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that responds to requests, so that the context has the request's state meanwhile."""
    if not LOSES_REQUESTS:
        return respond

    @functools.wraps(respond)
    def keeping(*args: P.args, **kwargs: P.kwargs) -> T:
        if not has_request():
            return respond(*args, **kwargs)
        token = _kept.set(RequestState())
        try:
            return respond(*args, **kwargs)
        finally:
            _kept.reset(token)

    return keeping


def has_request() -> bool:
    """Tell whether this thread may use the API ticket of a request."""
    module = sys.modules.get(_STUB_MODULE)
    return module is not None and module.DefaultApiStub.ShouldUseRequestSecurityTicketForThread()


def lost_request() -> RequestState | None:
    """Return the state of the request to which this thread's context belongs, if the thread lacks it."""
    kept = _kept.get()
    return None if kept is None or has_request() else kept


def in_request(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that uses the SDK, so that it also works in a thread that has only the request's context."""
    if not LOSES_REQUESTS:
        return function

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        lost = lost_request()
        return function(*args, **kwargs) if lost is None else lost.run(function, *args, **kwargs)

    return inside


API_HOST_VARIABLE: Final = "API_HOST"
TICKET_VARIABLE: Final = "HTTP_X_APPENGINE_API_TICKET"


def connect_process() -> None:
    """Connect the SDK to the local server that the environment names, for a process without requests.

    An app does the same for the time of a request, with ``wrap_wsgi_app``. If there is no ``API_HOST``, this does
    nothing. Call it in the main thread.
    """
    if API_HOST_VARIABLE not in os.environ:
        return
    from google.appengine.api import full_app_id
    from google.appengine.runtime import default_api_stub

    full_app_id.normalize()
    default_api_stub.Register(default_api_stub.DefaultApiStub())
    # Take the ticket from HTTP_X_APPENGINE_API_TICKET; by default the SDK takes it from a request's environ.
    default_api_stub.DefaultApiStub.SetUseRequestSecurityTicketForThread(True)


def _sdk() -> tuple[Any, Any]:
    """Return where the SDK keeps the thread-local state."""
    from google.appengine.runtime import default_api_stub, request_environment

    return request_environment.current_request, default_api_stub.DefaultApiStub

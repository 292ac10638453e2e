"""Enqueues that are under way: those that a request waits for before it ends, and those that nobody asked about.

An instance may be frozen as soon as its request has ended. So what ``defer_async`` started in a request is waited for
at the request's end, and a failure that the app did not ask about is logged there. :data:`UNDER_WAY` and :data:`FAILED`
are empty nearly always, and looking whether they are costs next to nothing.
"""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from deferred_middleware.enqueue.background import ALARM, BeforeEnd
from deferred_middleware.errors.loggers import get_logger

logger = get_logger("deferred_middleware")


class Enqueueing(Protocol):
    """What is waited for: an :class:`~deferred_middleware.EnqueueFuture`."""

    key: Key

    @property
    def label(self) -> str:
        """The call's label."""

    def done(self) -> bool:
        """Tell whether it has ended."""

    def add_done_callback(self, callback: Callable[[object], object]) -> None:
        """Call ``callback`` when it has ended, at once if it has."""

    def settle(self) -> bool:
        """Wait for the end; log a failure that nobody asked about, and return whether there is none."""

    def raise_failure(self) -> None:
        """Wait for the end, and raise a failure that nobody asked about."""


Key = tuple[int, str]
"""Tells a request from others: its thread, and the platform's id of it where there is one."""

UNDER_WAY: Final[set[Enqueueing]] = set()
"""What is not decided yet."""
FAILED: Final[dict[int, weakref.ref[Enqueueing]]] = {}
"""What failed and somebody might still ask about, by its identity."""
_lock = threading.RLock()  # a weak reference's callback may come at any time
_told: contextvars.ContextVar[str] = contextvars.ContextVar("deferred_middleware.request_end", default="")


def key_of_request() -> Key:
    """Return the current request's key.

    A thread does one request at a time; the id is handed on to threads that a request starts (SDK:
    ``runtime/context/gae_headers.py``).
    """
    from google.appengine.runtime.context import gae_headers

    return threading.get_ident(), gae_headers.REQUEST_LOG_ID.get() or ""


def started(enqueueing: Enqueueing) -> None:
    """Remember what was started, until its request ends."""
    from google.appengine.runtime import callback

    with _lock:
        UNDER_WAY.add(enqueueing)
    _AT_END.register()
    # wrap_wsgi_app calls this when the response is gone through, so that what is enqueued by a streamed response after
    # the middleware returned it is waited for too. It knows a request by its trace (SDK: runtime/callback.py).
    request = callback.GetRequestId()
    if request and _told.get() != request:
        _told.set(request)
        callback.SetRequestEndCallback(lambda _: settle_request())


def ended(enqueueing: Enqueueing, *, failed: bool) -> None:
    """Forget it, or keep it in mind if it failed."""
    with _lock:
        if failed:
            number = id(enqueueing)
            FAILED[number] = weakref.ref(enqueueing, lambda _: FAILED.pop(number, None))
        UNDER_WAY.discard(enqueueing)


def _all() -> list[Enqueueing]:
    with _lock:
        failed = [reference() for reference in FAILED.values()]
        return [*UNDER_WAY, *(enqueueing for enqueueing in failed if enqueueing is not None)]


def of_request(key: Key) -> list[Enqueueing]:
    """Return what the request has under way, or has failed with."""
    thread, request = key
    return [one for one in _all() if one.key[0] == thread or (request and one.key[1] == request)]


def settle_request(key: Key | None = None) -> bool:
    """Wait for what the request has under way, by default the current one.

    Returns whether nothing failed that nobody asked about; such a failure is logged as an error.
    """
    fine = True
    # What an enqueue's callback starts is waited for too.
    while found := of_request(key or key_of_request()):
        for enqueueing in found:
            fine = _settle(enqueueing) and fine
    return fine


def _settle(enqueueing: Enqueueing) -> bool:
    fine = enqueueing.settle()
    with _lock:
        FAILED.pop(id(enqueueing), None)
        UNDER_WAY.discard(enqueueing)
    return fine


def raise_failure() -> None:
    """Wait for what the current request has under way, and raise a failure that nobody asked about, for it is now."""
    for enqueueing in of_request(key_of_request()):
        enqueueing.raise_failure()


def wait_after(iterable: Iterable[bytes]) -> Iterable[bytes]:
    """Return a response that waits for what the current request has under way, when it has been gone through.

    Returns the same one if there is nothing to wait for.
    """
    key = key_of_request()
    return _Waiting(iterable, key) if of_request(key) else iterable


class _Waiting:
    """A response's iterable that waits at its end for the request's enqueues.

    Where the server sends each part before it asks for the next, the client has the whole response by then. It does not
    wait for ``close()`` alone, because ``wrap_wsgi_app`` never calls it (SDK: ``runtime/middlewares.py``,
    WaitForResponseMiddleware).
    """

    def __init__(self, iterable: Iterable[bytes], key: Key) -> None:
        self._iterable = iterable
        self._iterator = iter(iterable)
        self._key = key

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._iterator)
        except StopIteration:
            settle_request(self._key)
            raise

    def __bool__(self) -> bool:
        return True

    def __len__(self) -> int:
        # wsgiref sets the Content-Length of a response with a single part.
        return len(self._iterable)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the response; it may not have been gone through to its end."""
        try:
            close = getattr(self._iterable, "close", None)
            if close is not None:
                close()
        finally:
            settle_request(self._key)


def _settle_all() -> None:
    """Wait for all that is under way, further attempts included, because the process ends."""
    try:
        while found := _all():
            for enqueueing in found:
                enqueueing.add_done_callback(lambda _: ALARM.wake())
                # The alarm may have no thread, and from Python 3.12 on a process that ends can't start one.
                ALARM.work_until(enqueueing.done)
                _settle(enqueueing)
    except BaseException:
        # Whoever stops the process (Ctrl-C) doesn't want to wait for the rest of it.
        for enqueueing in _all():
            if enqueueing.done():
                enqueueing.settle()
            else:
                logger.error("%s is not known to be enqueued: the process was stopped meanwhile", enqueueing.label)
        _forget()
        raise


def _forget() -> None:
    with _lock:
        UNDER_WAY.clear()
        FAILED.clear()


def _after_fork() -> None:
    """Leave to the parent what the parent has under way: its threads aren't here, and it tells what becomes of it."""
    global _lock
    _lock = threading.RLock()
    _forget()


_AT_END: Final = BeforeEnd(_settle_all)
os.register_at_fork(after_in_child=_after_fork)

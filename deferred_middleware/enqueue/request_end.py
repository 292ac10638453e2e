"""Enqueues that are under way, which a request waits for before it ends, and failures that the app hasn't read.

An instance may be frozen as soon as its request has ended. So the request waits at its end for the enqueues that
``defer_async`` started, and logs the failures that the app didn't read. :data:`UNDER_WAY` and :data:`FAILED` are nearly
always empty, and the check whether they are is cheap.
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
from deferred_middleware.errors.sdk_types import HAS_SDK

logger: Final = get_logger("deferred_middleware")


class Enqueueing(Protocol):
    """An enqueue to wait for: an :class:`~deferred_middleware.EnqueueFuture`."""

    key: Key

    @property
    def label(self) -> str:
        """The call's label."""

    def done(self) -> bool:
        """Tell whether the outcome is known."""

    def add_done_callback(self, callback: Callable[[object], object]) -> None:
        """Call ``callback`` once the outcome is known, or at once if it is known already."""

    def settle(self) -> bool:
        """Wait for the outcome. Log a failure that the app didn't read, and return whether there is none."""

    def raise_failure(self) -> None:
        """Wait for the outcome, and raise a failure that the app didn't read."""


Key = tuple[int, str]
"""Identifies a request by its thread and, if there is one, the platform's request ID."""

UNDER_WAY: Final[set[Enqueueing]] = set()
"""Enqueues without an outcome."""
FAILED: Final[dict[int, weakref.ref[Enqueueing]]] = {}
"""Failed enqueues that the app may still read, by ``id()``."""
_lock = threading.RLock()  # reentrant, because a weak reference's callback may run at any time
_told: contextvars.ContextVar[str] = contextvars.ContextVar("deferred_middleware.request_end", default="")


def key_of_request() -> Key:
    """Return the current request's key.

    A thread handles one request at a time. The ID is passed on to the threads that a request starts (SDK:
    ``runtime/context/gae_headers.py``).
    """
    if not HAS_SDK:
        return threading.get_ident(), ""
    from google.appengine.runtime.context import gae_headers

    return threading.get_ident(), gae_headers.REQUEST_LOG_ID.get() or ""


def started(enqueueing: Enqueueing) -> None:
    """Keep track of an enqueue until its request ends."""
    with _lock:
        UNDER_WAY.add(enqueueing)
    _AT_END.register()
    if not HAS_SDK:
        return
    from google.appengine.runtime import callback

    # wrap_wsgi_app calls this after the last part of the response. So the request also waits for calls that a streamed
    # response enqueues after the middleware returned it. wrap_wsgi_app identifies a request by its trace (SDK:
    # runtime/callback.py).
    request = callback.GetRequestId()
    if request and _told.get() != request:
        _told.set(request)
        callback.SetRequestEndCallback(lambda _: settle_request())


def ended(enqueueing: Enqueueing, *, failed: bool) -> None:
    """Stop tracking an enqueue, or move it to the failed ones."""
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
    """Return the request's enqueues that are under way or failed."""
    thread, request = key
    return [one for one in _all() if one.key[0] == thread or (request and one.key[1] == request)]


def settle_request(key: Key | None = None) -> bool:
    """Wait for the enqueues of a request, by default the current one.

    A failure that the app didn't read is logged as an error. Returns whether there is no such failure.
    """
    fine = True
    # The callback of an enqueue may start another one.
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
    """Wait for the current request's enqueues, and raise a failure that the app didn't read."""
    for enqueueing in of_request(key_of_request()):
        enqueueing.raise_failure()


def wait_after(iterable: Iterable[bytes]) -> Iterable[bytes]:
    """Return a response that waits after its last part for the current request's enqueues.

    If there are none, return the same response.
    """
    key = key_of_request()
    return _Waiting(iterable, key) if of_request(key) else iterable


class _Waiting:
    """A response's iterable that waits at its end for the request's enqueues.

    A server that sends each part before it asks for the next has sent the whole response by then. The wait is not in
    ``close()`` alone, because ``wrap_wsgi_app`` never calls it (SDK: ``runtime/middlewares.py``,
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
        """Close the response, which may not have been read to its end."""
        try:
            close = getattr(self._iterable, "close", None)
            if close is not None:
                close()
        finally:
            settle_request(self._key)


def _settle_all() -> None:
    """Wait at the end of the process for all enqueues, including their retries."""
    try:
        while found := _all():
            for enqueueing in found:
                enqueueing.add_done_callback(lambda _: ALARM.wake())
                # The alarm may have no thread. From Python 3.12 on, a process that is ending can't start one.
                ALARM.work_until(enqueueing.done)
                _settle(enqueueing)
    except BaseException:
        # Someone stopped the process, for example with Ctrl-C. Don't wait for the other enqueues.
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
    """Forget the parent's enqueues: their threads run in the parent, and the parent reports their outcomes."""
    global _lock
    _lock = threading.RLock()
    _forget()


_AT_END: Final = BeforeEnd(_settle_all)
os.register_at_fork(after_in_child=_after_fork)

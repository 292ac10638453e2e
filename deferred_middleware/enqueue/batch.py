"""Calls that are enqueued together: :class:`defer_batch`, and those of a request with ``DEFERRED_COALESCE``."""

from __future__ import annotations

import contextvars
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeVar

from deferred_middleware.engines.request_scope import Scope, in_request, lost_request
from deferred_middleware.errors.loggers import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from deferred_middleware.enqueue.futures import EnqueueFuture
    from deferred_middleware.enqueue.prepare import PreparedCall
    from deferred_middleware.enqueue.report import EnqueueReport

logger: Final = get_logger("deferred_middleware")

B = TypeVar("B", bound="Batch")

current_batch: contextvars.ContextVar[Batch | None] = contextvars.ContextVar("deferred_middleware.batch", default=None)
"""The innermost batch. It may be closed, if this context was copied inside it: see :meth:`Batch.open_one`."""
_PARALLEL = 10


def _innermost() -> Batch | None:
    """Return the innermost open batch, or None."""
    batch = current_batch.get()
    return None if batch is None else batch.open_one()


class Batch:
    """Calls that were deferred and not yet sent."""

    takes_plain_calls = True
    """Whether the batch takes the calls of ``defer`` too, and not only those of ``defer_async``."""

    def __init__(self) -> None:
        self.outer: Batch | None = None
        self.is_open: bool = False
        self._lock = threading.Lock()
        self._gathered: list[tuple[PreparedCall, EnqueueFuture | None]] = []

    def __enter__(self: B) -> B:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gathered = self._close()
        if kind is not None:
            self._drop(gathered, error)
        else:
            self._leave(gathered)

    def _leave(self, gathered: list[tuple[PreparedCall, EnqueueFuture | None]]) -> None:
        """Enqueue the collected calls."""
        raise NotImplementedError

    def open_one(self) -> Batch | None:
        """Return this batch if it is open, or else the innermost open batch around it."""
        batch: Batch | None = self
        while batch is not None and not batch.is_open:
            batch = batch.outer
        return batch

    def __len__(self) -> int:
        return len(self._gathered)

    def __bool__(self) -> bool:
        return True

    def take(self, prepared: PreparedCall, future: EnqueueFuture | None = None) -> bool:
        """Add a call to the batch. Returns False if the batch has been closed meanwhile."""
        with self._lock:
            if self.is_open:
                self._gathered.append((prepared, future))
            return self.is_open

    def asked_about(self, future: EnqueueFuture) -> None:
        """Handle a wait for a call of this batch that was not sent yet."""

    def _open(self) -> None:
        if self.is_open:
            raise RuntimeError(
                "this batch is entered already; a batch can be entered again only after it has been left"
            )
        self.outer = _innermost()
        self._token = current_batch.set(self)
        self.is_open = True

    def _close(self) -> list[tuple[PreparedCall, EnqueueFuture | None]]:
        """Close the batch, and return its calls."""
        current_batch.reset(self._token)
        with self._lock:
            self.is_open = False
        return self._take_all()

    def _take_all(self) -> list[tuple[PreparedCall, EnqueueFuture | None]]:
        with self._lock:
            gathered, self._gathered = self._gathered, []
        return gathered

    def _drop(self, gathered: list[tuple[PreparedCall, EnqueueFuture | None]], error: BaseException | None) -> None:
        """Discard calls that must not be sent, because of ``error``."""
        if not gathered:
            return
        count = len(gathered)
        calls = "1 deferred call was" if count == 1 else f"{count} deferred calls were"
        logger.warning("%s not enqueued, because the batch or the request around them failed", calls)
        from deferred_middleware.errors.sdk import EnqueueError

        for prepared, future in gathered:
            if future is not None:
                call = prepared.call
                reason = "the batch or the request around it failed."
                dropped = EnqueueError(call.label, prepared.queue, call.options.name, reason)
                dropped.__cause__ = error
                future._drop(dropped)


class defer_batch(Batch):
    """Enqueue the calls that are deferred in the block together at its end, or none of them if the block raises.

    ::

        with defer_batch() as batch:
            for order in orders:
                defer(ship, order.key)

    Each call is checked and pickled where it is deferred. The tasks and futures that ``defer`` and ``defer_async``
    return there are enqueued at the end of the block. ``async with`` doesn't block the event loop. An inner batch is
    sent with the outer one. Transactional calls are not part of the batch, because the transaction decides when they
    are enqueued.

    Raises:
        NotAllEnqueuedError: at the end, if some calls are not enqueued. Its ``report`` covers each call, and is also
            ``batch.report``.
    """

    report: EnqueueReport | None = None
    """The outcome of the calls, in order. None before the end, or if the calls are sent with the outer batch."""

    async def __aenter__(self) -> defer_batch:
        self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gathered = self._close()
        if kind is not None:
            self._drop(gathered, error)
        elif gathered:
            import asyncio

            lost = lost_request()
            scope = Scope() if lost is None else lost.run(Scope)
            await asyncio.to_thread(scope.run, self._leave, gathered)

    def asked_about(self, future: EnqueueFuture) -> None:
        """Raise :class:`RuntimeError`, because a wait inside the block would never end."""
        if _innermost() is self:
            raise RuntimeError(f"{future.label} leaves at the end of its defer_batch(); wait for it after that.")

    @in_request
    def _leave(self, gathered: list[tuple[PreparedCall, EnqueueFuture | None]]) -> None:
        outer = self.outer
        # A request's batch doesn't take the calls of defer(): they must be enqueued at the end of their own batch.
        if outer is not None and outer.takes_plain_calls and all(outer.take(*one) for one in gathered):
            for _, future in gathered:
                if future is not None:
                    future.batch = outer
            return
        from deferred_middleware.enqueue import many

        # As in defer(), a name that is taken is an error.
        stream = many.Stream(_PARALLEL, taken_names_fail=True)
        self.report = stream.report
        for prepared, future in gathered:
            stream.take(prepared, future)
        stream.finish()
        stream.wait()
        if not stream.report.ok:
            many.raise_for(stream.report)


class RequestBatch(Batch):
    """The ``defer_async`` calls of a request. They are sent when the app has returned its response.

    If the app waits for one of them earlier, the calls collected so far are sent at once.
    """

    takes_plain_calls = False

    def asked_about(self, future: EnqueueFuture) -> None:
        """Send the collected calls."""
        self._leave(self._take_all())

    def drop(self, error: BaseException | None = None) -> None:
        """Discard the collected calls."""
        self._drop(self._take_all(), error)

    @in_request
    def _leave(self, gathered: list[tuple[PreparedCall, EnqueueFuture | None]]) -> None:
        if not gathered:
            return
        from deferred_middleware.enqueue import futures

        futures.start_many([(prepared, future) for prepared, future in gathered if future is not None])


def drop_request(error: BaseException) -> None:
    """Discard the current request's collected calls, because its framework turns ``error`` into an error page."""
    batch = _innermost()
    while batch is not None and not isinstance(batch, RequestBatch):
        batch = batch.outer
    if batch is not None:
        batch.drop(error)


def coalescing(app: WSGIApplication) -> WSGIApplication:
    """Wrap ``app`` so that the ``defer_async`` calls of each request are sent together."""

    def coalesced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with RequestBatch():
            return app(environ, start_response)

    return coalesced

""":class:`EnqueueFuture`, which ``defer_async`` returns, and the attempts to enqueue that go on in the background.

Importing this module imports the SDK, except in a process that does without it. There a request has no state.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

from deferred_middleware.engines.request_scope import Scope
from deferred_middleware.enqueue import request_end
from deferred_middleware.enqueue.add import Add, AddGroups, add
from deferred_middleware.enqueue.background import ALARM
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.errors.sdk_types import HAS_SDK

if HAS_SDK:
    from google.appengine.api import apiproxy_rpc
    from google.appengine.ext.ndb import eventloop, tasklets

if TYPE_CHECKING:
    from deferred_middleware.engines.engine import StartedAdd
    from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
    from deferred_middleware.enqueue.prepare import PreparedCall

P = ParamSpec("P")
T = TypeVar("T")


logger: Final = get_logger("deferred_middleware")

_FIRST_POLL_SECONDS: Final = 0.0005
_MAX_POLL_SECONDS: Final = 0.01


class Gathering(Protocol):
    """A batch of calls that were not sent yet."""

    def asked_about(self, future: EnqueueFuture) -> None:
        """Handle a wait for one of the calls."""


if TYPE_CHECKING:

    class UntypedFuture:
        """The SDK's class for type checkers. The SDK has no types."""

else:
    UntypedFuture = tasklets.Future if HAS_SDK else object


class EnqueueFuture(UntypedFuture):
    """The result of :func:`deferred_middleware.defer_async`: the task, or the error that prevented the enqueue.

    The enqueue and its retries go on in the background, whether or not the app waits. On each engine, a coroutine can
    ``await`` the future, and a tasklet of the SDK's ndb can ``yield`` it, alone or in a list.
    """

    def __init__(self, prepared: PreparedCall, batch: Gathering | None = None) -> None:
        # The state of ndb's Future is not used, because the result comes from a thread other than that of its event
        # loop.
        self.prepared = prepared
        self.key: request_end.Key = request_end.key_of_request()
        self._outcome: concurrent.futures.Future[EnqueuedTask] = concurrent.futures.Future()
        self._outcome.set_running_or_notify_cancel()  # so that a waiter can't cancel it for the others
        self._asked = False
        self.batch = batch
        """The batch that contains the call, until the batch is sent."""
        if batch is None:
            request_end.started(self)

    def leave(self) -> None:
        """Remove it from the batch, because its RPC is about to start."""
        if self.batch is not None:
            self.batch = None
            request_end.started(self)

    @classmethod
    def decided(cls, prepared: PreparedCall) -> EnqueueFuture:
        """Return the future of a task that is enqueued already."""
        future = cls(prepared)
        future._decide(None)
        return future

    @property
    def label(self) -> str:
        """The call's label, ``module/qualname``."""
        return str(self.prepared.call.label)

    def result(self, timeout: float | None = None) -> EnqueuedTask:
        """Wait up to ``timeout`` seconds for the enqueue, and return the task.

        Raises:
            EnqueueError: the task is not enqueued, or not known to be.
            TimeoutError: there is no outcome yet (``concurrent.futures.TimeoutError`` before Python 3.11).
        """
        self._ask()
        try:
            return self._outcome.result(timeout)
        finally:
            self._asked = self._asked or self._outcome.done()

    def get_result(self) -> EnqueuedTask:
        """Wait for the enqueue, and return the task, as the SDK's RPC objects do."""
        return self.result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait up to ``timeout`` seconds, and return the exception that :meth:`result` would raise, or None."""
        self._ask()
        error = self._outcome.exception(timeout)
        self._asked = True
        return error

    def done(self) -> bool:
        """Tell whether the outcome is known."""
        return self._outcome.done()

    def add_done_callback(self, callback: Callable[[EnqueueFuture], object]) -> None:
        """Call ``callback`` with this future once the outcome is known, in the thread that sets it.

        If the outcome is known already, call it at once. An exception from the callback is logged.
        """
        self._outcome.add_done_callback(lambda done: callback(self))

    def __await__(self) -> Generator[Any, None, EnqueuedTask]:
        """Wait in a coroutine, without blocking its event loop."""
        import asyncio

        self._ask()
        self._asked = True
        return asyncio.wrap_future(self._outcome).__await__()

    def settle(self) -> bool:
        """Wait, and log a failure that the app didn't read. Return whether there is no such failure."""
        concurrent.futures.wait([self._outcome])
        return not self._report()

    def raise_failure(self) -> None:
        """Wait, and raise a failure that the app didn't read."""
        if not self._asked:
            self.result()

    def _ask(self) -> None:
        if self.batch is not None:
            self.batch.asked_about(self)

    def _drop(self, error: Exception) -> None:
        """Set ``error`` as the outcome of a call that was discarded on purpose. It is not logged."""
        self._asked = True
        self._outcome.set_exception(error)

    def _report(self) -> bool:
        if self._asked or not self._outcome.done() or self._outcome.exception() is None:
            return False
        self._asked = True
        logger.error(
            "%s (nothing waited for this enqueue)", self._outcome.exception(), exc_info=self._outcome.exception()
        )
        return True

    def __del__(self) -> None:
        if hasattr(self, "_asked"):
            self._report()

    def _decide(self, error: BaseException | None) -> None:
        request_end.ended(self, failed=error is not None)
        if error is None:
            self._outcome.set_result(self.prepared.task)
        else:
            self._outcome.set_exception(error)

    # The methods that ndb calls on its own futures.

    @property
    def state(self) -> int:
        """The state, as ndb's numbers."""
        return int(apiproxy_rpc.RPC.FINISHING if self.done() else apiproxy_rpc.RPC.RUNNING)

    def wait(self) -> None:
        """Wait until the outcome is known."""
        self._ask()
        concurrent.futures.wait([self._outcome])

    def check_success(self) -> None:
        """Wait, and raise the failure, if there is one."""
        self.result()

    def get_exception(self) -> BaseException | None:
        """Wait, and return the failure, or None."""
        return self.exception()

    def get_traceback(self) -> Any:
        """Wait, and return the traceback of the failure, or None."""
        error = self.exception()
        return None if error is None else error.__traceback__

    def add_callback(self, callback: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Make this thread's ndb event loop call ``callback`` once the outcome is known."""
        self._ask()

        def call_when_done(seconds: float) -> None:
            # Another thread sets the outcome and can't wake the event loop. So a timer of the event loop polls.
            if self.done():
                eventloop.queue_call(None, callback, *args, **kwargs)
            else:
                eventloop.queue_call(seconds, call_when_done, min(2 * seconds, _MAX_POLL_SECONDS))

        call_when_done(_FIRST_POLL_SECONDS)

    add_immediate_callback = add_callback

    def __repr__(self) -> str:
        # google-cloud-ndb shows this text to a tasklet that yields the future. Yielding works in the SDK's ndb only.
        state = "decided" if self.done() else "under way"
        return f"<EnqueueFuture {self.label} queue={self.prepared.queue!r} {state}; .result() waits for it>"


def start(prepared: PreparedCall) -> EnqueueFuture:
    """Start to add one task. A transactional task is added before this returns, or :class:`EnqueueError` is raised."""
    if prepared.transactional:
        add(prepared)
        return EnqueueFuture.decided(prepared)
    future = EnqueueFuture(prepared)
    run(Add((prepared,)), functools.partial(_decide, [future]))
    return future


def start_many(several: Iterable[tuple[PreparedCall, EnqueueFuture]]) -> None:
    """Start to add several tasks in as few RPCs as possible, and set the outcomes of their futures."""
    groups: AddGroups[EnqueueFuture] = AddGroups()
    full = [group for prepared, future in several for group in groups.add(prepared, future)]
    for group in [*full, *groups.rest()]:
        for future in group.tags:
            future.leave()
        run(Add(group.prepared), functools.partial(_decide, group.tags))


def _decide(futures: Sequence[EnqueueFuture], done: Add) -> None:
    for place, future in enumerate(futures):
        future._decide(done.errors.get(place))


def run(adding: Add, when_done: Callable[[Add], object]) -> None:
    """Run all attempts of ``adding``, in other threads if the engine allows, and then call ``when_done``."""
    scope = Scope()

    def attempt() -> None:
        try:
            started = adding.start()
        except BaseException as error:  # noqa: BLE001 - it is raised again, or is the outcome
            fail(error)
            return
        future = None if started is None else started.future
        if future is None:
            read_answer(started)
        else:
            future.add_done_callback(lambda _: scope.run(read_answer, started))

    def fail(error: BaseException) -> None:
        # Neither a bug in our code nor Ctrl-C in this thread may leave others waiting forever.
        if isinstance(error, Exception):
            adding.fail_all(error)
            when_done(adding)
        else:
            adding.fail_all(RuntimeError(f"{type(error).__name__} stopped it"))
            when_done(adding)
            raise error

    def read_answer(started: StartedAdd | None) -> None:
        try:
            delay = adding.finish(started)
        except BaseException as error:  # noqa: BLE001 - it is raised again, or is the outcome
            fail(error)
            return
        if delay is None:
            when_done(adding)
        elif delay:
            ALARM.call_later(delay, lambda: scope.run(attempt))
        else:
            attempt()

    attempt()

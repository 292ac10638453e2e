"""Call functions later in one thread of the process, or at the end of the process while its thread pools still work."""

from __future__ import annotations

import atexit
import heapq
import itertools
import os
import threading
from collections.abc import Callable
from typing import Final

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.wire.monotonic import monotonic

logger: Final = get_logger("deferred_middleware")

_IDLE_SECONDS: Final = 10.0
"""How long the thread stays idle before it ends."""


class Alarm:
    """A thread that calls functions when they are due. It runs only while functions are scheduled.

    The functions must not block, because they delay the others.
    """

    def __init__(self) -> None:
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._running = False
        self._taken_over = False

    def call_later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call ``function`` in ``seconds``. An exception from it is logged."""
        with self._changed:
            heapq.heappush(self._due, (monotonic() + seconds, next(self._numbers), function))
            if self._running or self._taken_over:
                self._changed.notify_all()
                return
            try:
                threading.Thread(target=self._work, name="deferred_middleware alarm", daemon=True).start()
            except RuntimeError:
                # A process that is ending can't start threads. work_until() or the next call_later() makes the call.
                return
            self._running = True

    def work_until(self, done: Callable[[], bool]) -> None:
        """Call the due functions in this thread until ``done()`` is true. No thread is started meanwhile.

        Use it at the end of the process. ``done`` is checked after each function, and when :meth:`wake` is called.
        """
        with self._changed:
            self._taken_over = True
        try:
            while not done():
                with self._changed:
                    function = self._next_due()
                    if function is None and not done():
                        self._changed.wait(self._seconds_to_next())
                if function is not None:
                    _call(function, Exception)
        finally:
            with self._changed:
                self._taken_over = False

    def wake(self) -> None:
        """Make :meth:`work_until` check again whether it is done."""
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                function = self._next_due()
                if function is None:
                    seconds = self._seconds_to_next()
                    notified = self._changed.wait(_IDLE_SECONDS if seconds is None else seconds)
                    if not notified and not self._due:
                        self._running = False
                        return
            if function is not None:
                # A callback of the app may raise SystemExit. The others' retries go on all the same.
                _call(function, BaseException)

    def _next_due(self) -> Callable[[], object] | None:
        """Remove the next due function and return it, or None if none is due."""
        if self._due and self._due[0][0] <= monotonic():
            return heapq.heappop(self._due)[2]
        return None

    def _seconds_to_next(self) -> float | None:
        return max(self._due[0][0] - monotonic(), 0) if self._due else None


def _call(function: Callable[[], object], caught: type[BaseException]) -> None:
    try:
        function()
    except caught:
        logger.exception("a delayed function failed")


ALARM: Final = Alarm()
"""The process's alarm."""


class BeforeEnd:
    """Calls ``function`` when the process ends, possibly twice.

    ``atexit`` is too late: the thread pools in which the SDK makes its calls are closed before it (``_python_exit`` in
    ``concurrent/futures/thread.py``). They register with ``threading``, which calls its functions earlier, the last
    registered first. That registration function has no public name.
    """

    __slots__ = ("_function", "_registered_by")

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._registered_by: object = None
        atexit.register(function)

    def register(self) -> None:
        """Register the function. Call this each time there is new work for it.

        ``wrap_wsgi_app`` reloads ``threading``, and the reload drops the registered functions (SDK:
        ``runtime/thread_hooks.py``).
        """
        register = getattr(threading, "_register_atexit", None)
        if register is self._registered_by or register is None:
            return
        self._registered_by = register
        import concurrent.futures.thread  # noqa: F401 - registers its function first; ours is called before

        try:
            register(self._function)
        except RuntimeError:
            return  # the process is ending already

"""Enqueue many calls with :func:`defer_many`. The memory that it needs doesn't grow with the number of calls.

Importing this module imports the SDK.
"""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NoReturn

from deferred_middleware.calls.call import Call
from deferred_middleware.calls.options import NO_OPTIONS, Options
from deferred_middleware.engines.request_scope import in_request
from deferred_middleware.enqueue import add as adding
from deferred_middleware.enqueue import futures
from deferred_middleware.enqueue.add import Add, AddGroup, AddGroups
from deferred_middleware.enqueue.prepare import PreparedCall, RandomDigits, enqueue_context, prepare
from deferred_middleware.enqueue.report import EnqueueReport
from deferred_middleware.errors.sdk import NotAllEnqueuedError

if TYPE_CHECKING:
    from deferred_middleware.enqueue.futures import EnqueueFuture


@in_request
def defer_many(
    calls: Iterable[Call],
    *,
    parallel: int,
    progress: Callable[[EnqueueReport], object] | None,
    raise_errors: bool,
    defaults: Options,
) -> EnqueueReport:
    """Enqueue ``calls``; see :func:`deferred_middleware.defer_many`."""
    stream = Stream(parallel, progress)
    with_defaults = _defaults(defaults)
    try:
        for call in _guarded(calls, stream.report):
            stream.take_call(call, with_defaults)
        stream.finish()
    finally:
        stream.wait()
    if raise_errors and not stream.report.ok:
        raise_for(stream.report)
    return stream.report


def raise_for(report: EnqueueReport) -> NoReturn:
    """Raise :class:`NotAllEnqueuedError` with ``report``."""
    first = report.errors[0][1] if report.errors else None
    raise NotAllEnqueuedError(report) from report.stopped_by or first


def _guarded(calls: Iterable[Call], report: EnqueueReport) -> Iterable[Call]:
    """Iterate over ``calls``. If the iterable raises, stop and keep the exception in the report."""
    try:
        yield from calls
    except Exception as error:  # noqa: BLE001 - it is raised or reported after the earlier calls are enqueued
        report.stopped_by = error


def _defaults(defaults: Options) -> Callable[[Call], Call] | None:
    """Return a function that adds the default options that a call doesn't set itself."""
    changed = {
        field.name: getattr(defaults, field.name)
        for field in dataclasses.fields(Options)
        if getattr(defaults, field.name) != getattr(NO_OPTIONS, field.name)
    }
    if not changed:
        return None

    def with_defaults(call: Call) -> Call:
        missing = {
            name: value for name, value in changed.items() if getattr(call.options, name) == getattr(NO_OPTIONS, name)
        }
        return dataclasses.replace(call, options=dataclasses.replace(call.options, **missing))

    return with_defaults


class Stream:
    """Sends calls as they arrive, one group in an RPC and ``parallel`` RPCs at once, and reports on each call."""

    def __init__(
        self,
        parallel: int,
        progress: Callable[[EnqueueReport], object] | None = None,
        *,
        taken_names_fail: bool = False,
    ) -> None:
        self.report: EnqueueReport = EnqueueReport()
        self._taken_names_fail = taken_names_fail
        self._parallel = parallel
        self._progress = progress
        self._context = enqueue_context(RandomDigits())
        self._groups: AddGroups[int] = AddGroups()
        self._futures: dict[int, EnqueueFuture] = {}
        """The future of each call that has one, by the call's index."""
        self._under_way = 0
        self._done: queue.SimpleQueue[tuple[AddGroup[int], Add]] = queue.SimpleQueue()

    def take_call(self, call: Call, change: Callable[[Call], Call] | None = None) -> None:
        """Prepare a call and add it. An error in it is reported."""
        index = self.report._next()
        try:
            if not isinstance(call, Call):
                raise TypeError(f"defer_many takes calls, such as call(func, argument), not {call!r:.200}")
            prepared = prepare(change(call) if change else call, None, self._context)
            if prepared.transactional:
                adding.add(prepared)
                self.report._succeed([index])
                return
        except Exception as error:  # noqa: BLE001 - it fails this call only, and is raised or reported at the end
            self.report._fail(index, error)
            return
        for group in self._groups.add(prepared, index):
            self._send(group)

    def take(self, prepared: PreparedCall, future: EnqueueFuture | None) -> None:
        """Add a prepared call. ``future`` receives its outcome."""
        index = self.report._next()
        if future is not None:
            self._futures[index] = future
        for group in self._groups.add(prepared, index):
            self._send(group)

    def finish(self) -> None:
        """Send the groups that are not full."""
        for group in self._groups.rest():
            self._send(group)

    def wait(self) -> None:
        """Wait for all RPCs."""
        while self._under_way:
            self._collect()

    def _send(self, group: AddGroup[int]) -> None:
        while self._under_way >= self._parallel:
            self._collect()
        self._under_way += 1
        for index in group.tags if self._futures else ():
            if index in self._futures:
                self._futures[index].leave()
        futures.run(Add(group.prepared), lambda add: self._done.put((group, add)))

    def _collect(self) -> None:
        """Wait for one of the RPCs, and report on its calls."""
        group, add = self._done.get()
        self._under_way -= 1
        if not add.errors:
            self.report._succeed(group.tags)
        else:
            self._report_each(group, add)
        for place, index in enumerate(group.tags) if self._futures else ():
            future = self._futures.pop(index, None)
            if future is not None:
                future._decide(add.errors.get(place))
        if self._progress is not None:
            self._progress(self.report)

    def _report_each(self, group: AddGroup[int], add: Add) -> None:
        for place, index in enumerate(group.tags):
            error = add.errors.get(place)
            if error is None:
                self.report._succeed([index])
            elif add.exists(place) and not self._taken_names_fail:
                self.report._exists(index, tombstoned=add.tombstoned(place))
            else:
                self.report._fail(index, error.with_traceback(None))

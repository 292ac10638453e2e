"""The tasks that a test captures, with assertions about them and methods to run them."""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from deferred_middleware.calls import payload
from deferred_middleware.calls.callables import AnyCallable
from deferred_middleware.config.process import current_settings
from deferred_middleware.errors import DeferredError
from deferred_middleware.testing.delivery import AttemptCounts, TaskRun, TaskRunError, deliver
from deferred_middleware.testing.expectations import Expectation, mismatch_message
from deferred_middleware.testing.hosts import HostOfRequests
from deferred_middleware.testing.records import CapturedTask, Clock
from deferred_middleware.testing.stub import CapturingStub, installed, target_from_host
from deferred_middleware.wire import entities, overflow

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

RUN_LIMIT = 1000
"""How many tasks one :meth:`DeferredTasks.run_all` runs before it raises :class:`TaskRunError`."""


_SHOWN_TASKS = 20


class DeferredTasks:
    """The tasks that are enqueued while a test runs; made by :func:`capture_tasks`.

    ``app`` is the WSGI app that runs them, with the middleware in it; it can be set later. ``clock`` decides which
    tasks are due. ``host`` is the host that tasks are delivered to; if it is None, it is that of the request that
    deferred the task.
    """

    def __init__(
        self,
        app: WSGIApplication | None = None,
        *,
        queue_yaml: str | os.PathLike[str] | None = None,
        immediate: bool = False,
        clock: Clock | None = None,
        host: str | None = None,
    ) -> None:
        self.app = app
        self.host = host
        self._hosts = HostOfRequests()
        self.clock: Clock = clock or Clock()
        self.immediate = immediate
        """Whether a task runs as soon as it is enqueued. Its error is then raised at the end of the test."""
        self.runs: list[TaskRun] = []
        """Every attempt, in order."""
        self._enqueued: list[CapturedTask] = []
        self._pending: list[CapturedTask] = []
        self._next_counts: dict[CapturedTask, AttemptCounts] = {}
        self._immediate_failures: list[TaskRun] = []
        self._stub = CapturingStub(
            self._record_add, self._record_delete, queue_yaml=None if queue_yaml is None else os.fspath(queue_yaml)
        )

    @property
    def enqueued(self) -> list[CapturedTask]:
        """Every task that was enqueued, or that was enqueued after :meth:`clear`, in order."""
        self._stub.report_committed()
        return list(self._enqueued)

    @property
    def pending(self) -> list[CapturedTask]:
        """The tasks that the queue would still have: they have not run yet, or failed."""
        self._stub.report_committed()
        return list(self._pending)

    def __repr__(self) -> str:
        self._stub.report_committed()
        failed = sum(not run.ok for run in self.runs)
        lines = [f"  {task}" for task in self._enqueued[:_SHOWN_TASKS]]
        if len(self._enqueued) > _SHOWN_TASKS:
            lines.append(f"  and {len(self._enqueued) - _SHOWN_TASKS} more")
        counts = f"{len(self._enqueued)} enqueued, {len(self._pending)} pending, attempts: {len(self.runs)}"
        return "\n".join([f"<DeferredTasks: {counts}, failed: {failed}>", *lines])

    def clear(self) -> None:
        """Forget all tasks and attempts. Used task names stay taken."""
        for task in self._pending:
            self._stub.forget(task.queue, task.name)
        for records in (self._enqueued, self._pending, self.runs, self._immediate_failures):
            records.clear()
        self._next_counts.clear()

    def assert_enqueued(self, func: AnyCallable, /, *args: Any, **kwargs: Any) -> CapturedTask:
        """Assert that ``func`` was deferred with these arguments, exactly once; return the task.

        The options ``_queue``, ``_name``, ``_target`` (as ``version.service``), ``_eta`` and ``_countdown`` are
        compared if they are given, the last two to within 5 seconds. ``_times`` is the number of calls to expect
        instead of 1.
        """
        __tracebackhide__ = True
        expected = Expectation.from_arguments(func, args, kwargs)
        times = kwargs.get("_times", 1)
        found = [task for task in self._enqueued if expected.differences(task) == []]
        if len(found) != times:
            raise AssertionError(mismatch_message(expected, times, len(found), self._enqueued))
        if not found:
            raise TypeError("_times=0: use assert_not_enqueued() to assert that a call was not enqueued")
        return found[-1]

    def assert_not_enqueued(self, func: AnyCallable, /, *args: Any, **kwargs: Any) -> None:
        """Assert that ``func`` was not deferred with these arguments; without arguments, that it was not deferred."""
        __tracebackhide__ = True
        expected = Expectation.from_arguments(func, args, kwargs)
        for task in self._enqueued:
            differences = expected.differences(task)
            if differences == [] or (differences is not None and not args and not kwargs):
                raise AssertionError(f"{task} was enqueued.")

    def assert_nothing_enqueued(self) -> None:
        """Assert that no task was enqueued."""
        __tracebackhide__ = True
        if self._enqueued:
            raise AssertionError("\n".join(["These tasks were enqueued:", *(f"  {task}" for task in self._enqueued)]))

    def run(
        self,
        task: CapturedTask | None = None,
        *,
        attempts: int = 1,
        deliveries: int = 1,
        raise_errors: bool = True,
    ) -> TaskRun:
        """Run one task in the app now, whatever its ETA; return its last attempt.

        Args:
            task: the task, by default the only pending one.
            attempts: how many attempts to make at most while the task fails, with the counts that the queue would send.
            deliveries: how many times to deliver the task if it succeeds; a queue may deliver a task more than once.
            raise_errors: whether to raise the error of the last attempt.
        """
        __tracebackhide__ = True
        if task is None:
            if len(self._pending) != 1:
                listed = "\n".join(f"  {pending}" for pending in self._pending)
                raise TaskRunError(f"run() without a task needs exactly one pending task; pending are:\n{listed}")
            task = self._pending[0]
        if attempts < 1 or deliveries < 1:
            raise ValueError("attempts and deliveries must be at least 1")
        for _ in range(attempts):
            last = self._make_attempt(task)
            if last.done:
                break
        for _ in range(deliveries - 1):
            if last.ok:
                last = self._make_attempt(task)
        if raise_errors:
            last.raise_if_failed()
        return last

    def run_all(
        self,
        *,
        attempts: int = 1,
        include_scheduled: bool = False,
        limit: int = RUN_LIMIT,
        raise_errors: bool = True,
    ) -> list[TaskRun]:
        """Run every task that is due by the clock, and the tasks that these enqueue; return all attempts.

        Args:
            attempts: how many attempts to make at most with a task that fails.
            include_scheduled: whether to run tasks with a later ETA too.
            limit: how many tasks to run at most; with more, :class:`TaskRunError` is raised.
            raise_errors: whether to raise the error of a task's last attempt, which leaves the other tasks pending.
        """
        __tracebackhide__ = True
        first = len(self.runs)
        tried: set[CapturedTask] = set()
        while due := self._due(tried, include_scheduled):
            if len(tried) >= limit:
                listed = "\n".join(f"  {task}" for task in due[:5])
                raise TaskRunError(f"run_all() reached its limit of {limit} tasks, and more are due:\n{listed}")
            tried.add(due[0])
            self.run(due[0], attempts=attempts, raise_errors=raise_errors)
        return self.runs[first:]

    def _due(self, tried: set[CapturedTask], include_scheduled: bool) -> list[CapturedTask]:
        due = [task for task in self._pending if task not in tried and (include_scheduled or task.is_due(self.clock))]
        return sorted(due, key=lambda task: task.due_posix)

    def _make_attempt(self, task: CapturedTask) -> TaskRun:
        __tracebackhide__ = True
        if self.app is None:
            raise TaskRunError("no app to run the tasks is set: assign deferred_tasks.app, or call capture_tasks(app)")
        counts = self._next_counts.get(task, AttemptCounts())
        run = deliver(self.app, task, counts)
        self.runs.append(run)
        self._next_counts[task] = AttemptCounts(
            retry_count=counts.retry_count + 1,
            execution_count=counts.execution_count + 1,
            previous_response=run.status,
        )
        if run.done and task in self._pending:
            self._pending.remove(task)
            self._stub.forget(task.queue, task.name)
        return run

    def _record_add(self, add: Any) -> None:
        """Record a task that was added, and in immediate mode run it."""
        task = _task_from_request(add, self.clock, self.host or self._hosts.current())
        self._enqueued.append(task)
        self._pending.append(task)
        if self.immediate:
            # The task of a queue is in no transaction of this thread.
            run = _in_own_thread(self._make_attempt, task) if entities.in_transaction() else self._make_attempt(task)
            if not run.ok:
                self._immediate_failures.append(run)

    def _record_delete(self, queue: str, names: list[str] | None) -> None:
        """Record that the app deleted tasks, or purged a queue."""
        self._pending = [
            task for task in self._pending if task.queue != queue or (names is not None and task.name not in names)
        ]

    def _raise_immediate_failures(self) -> None:
        for run in self._immediate_failures:
            run.raise_if_failed()


def _in_own_thread(function: Callable[[CapturedTask], TaskRun], task: CapturedTask) -> TaskRun:
    """Return ``function(task)``, called in another thread with a copy of this thread's context."""
    outcome: Future[TaskRun] = Future()
    context = contextvars.copy_context()

    def call() -> None:
        try:
            outcome.set_result(context.run(function, task))
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            outcome.set_exception(error)

    thread = threading.Thread(target=call, name="deferred_middleware immediate task")
    thread.start()
    thread.join()
    return outcome.result()


@contextlib.contextmanager
def capture_tasks(
    app: WSGIApplication | None = None,
    *,
    queue_yaml: str | os.PathLike[str] | None = None,
    immediate: bool = False,
    clock: Clock | None = None,
    host: str | None = None,
) -> Iterator[DeferredTasks]:
    """Capture the tasks that are enqueued inside the ``with`` block. They are sent nowhere.

    Args:
        app: the WSGI app that runs the tasks.
        queue_yaml: the path of a queue.yaml; only its queues exist then. By default every queue exists.
        immediate: whether to run each task when it is enqueued; its error is raised at the end of the block.
        clock: decides which tasks are due; by default it has the real time, and can be advanced.
        host: the host that the tasks are delivered to, by default that of the request of Django or Flask that deferred
            the task. Outside of a request it is that of the last request, or that of the framework's test client.
    """
    tasks = DeferredTasks(app, queue_yaml=queue_yaml, immediate=immediate, clock=clock, host=host)
    with installed(tasks._stub), tasks._hosts.watching():
        yield tasks
        tasks._raise_immediate_failures()


def _task_from_request(add: Any, clock: Clock, host_of_request: str) -> CapturedTask:
    headers = {h.key.decode("latin-1"): h.value.decode("latin-1") for h in add.header}
    host = next((value for name, value in headers.items() if name.lower() == "host"), "")
    now = datetime.datetime.fromtimestamp(time.time(), datetime.timezone.utc)
    eta = datetime.datetime.fromtimestamp(add.eta_usec / 1e6, datetime.timezone.utc)
    call, error = None, None
    try:
        reference = overflow.Reference.parse(add.body, current_settings().max_payload_bytes)
        call = payload.loads(add.body if reference is None else overflow.fetch(reference))
    except DeferredError as problem:
        error = problem
    return CapturedTask(
        queue=add.queue_name.decode(),
        name=add.task_name.decode(),
        method=type(add).RequestMethod.Name(add.method),
        url=add.url.decode(),
        headers={name: value for name, value in headers.items() if name.lower() != "host"},
        body=add.body,
        eta=eta,
        enqueued=now,
        due_posix=clock() + max(0.0, (eta - now).total_seconds()),
        target=target_from_host(host),
        host=host_of_request,
        call=call,
        call_error=error,
    )

"""What a test has in hand: the tasks that were enqueued, assertions about them, and a queue that it runs itself."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from deferred_middleware.calls import payload
from deferred_middleware.calls.callables import AnyCallable
from deferred_middleware.config.process import current_settings
from deferred_middleware.errors import DeferredError
from deferred_middleware.testing.delivering import Attempt, TaskRun, TaskRunError, deliver
from deferred_middleware.testing.expectations import Expectation, mismatch
from deferred_middleware.testing.records import Clock, EnqueuedTask
from deferred_middleware.testing.stub import CapturingStub, installed, target_of
from deferred_middleware.wire import overflow

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

RUN_LIMIT = 1000
"""How many attempts one :meth:`DeferredTasks.run_all` makes before it says that the tasks don't come to an end."""


class DeferredTasks:
    """The tasks that are enqueued while a test runs; made by :func:`capture_tasks`.

    ``app`` is the WSGI app that runs them, with the middleware in it; it may be set later. ``clock`` says what is due.
    """

    def __init__(
        self,
        app: WSGIApplication | None = None,
        *,
        queue_yaml: str | os.PathLike[str] | None = None,
        immediate: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.app = app
        self.clock = clock or Clock()
        self.immediate = immediate
        """Whether a task is run as soon as it is enqueued. What it raises then is raised when the test is over."""
        self.runs: list[TaskRun] = []
        """Every attempt that was made, in order."""
        self._enqueued: list[EnqueuedTask] = []
        self._pending: list[EnqueuedTask] = []
        self._attempts: dict[EnqueuedTask, Attempt] = {}
        self._immediate_failures: list[TaskRun] = []
        self._stub = CapturingStub(
            self._take, self._drop, queue_yaml=None if queue_yaml is None else os.fspath(queue_yaml)
        )

    @property
    def enqueued(self) -> list[EnqueuedTask]:
        """Every task that was enqueued since the beginning, or since :meth:`clear`, in order."""
        return list(self._enqueued)

    @property
    def pending(self) -> list[EnqueuedTask]:
        """The tasks that the queue would not be done with: not run yet, or failed."""
        return list(self._pending)

    def clear(self) -> None:
        """Forget all tasks and attempts; names that were used stay used."""
        for task in self._pending:
            self._stub.forget(task.queue, task.name)
        for gathered in (self._enqueued, self._pending, self.runs, self._immediate_failures):
            gathered.clear()
        self._attempts.clear()

    def assert_enqueued(self, func: AnyCallable, /, *args: Any, **kwargs: Any) -> EnqueuedTask:
        """Assert that ``func`` was deferred with these arguments, once; return the task.

        ``_queue``, ``_name``, ``_target`` (as ``version.service``), ``_eta`` and ``_countdown`` are compared if they
        are given (the last two to 5 seconds); ``_times`` is how often it is to have been deferred, 1 if not given.
        """
        expected = Expectation.of(func, args, kwargs)
        times = kwargs.get("_times", 1)
        found = [task for task in self._enqueued if expected.differences(task) == []]
        if len(found) != times:
            raise AssertionError(mismatch(expected, times, len(found), self._enqueued))
        if not found:
            raise TypeError("to assert that a call was not enqueued there is assert_not_enqueued()")
        return found[-1]

    def assert_not_enqueued(self, func: AnyCallable, /, *args: Any, **kwargs: Any) -> None:
        """Assert that ``func`` was not deferred with these arguments; without any, not at all."""
        expected = Expectation.of(func, args, kwargs)
        for task in self._enqueued:
            differences = expected.differences(task)
            if differences == [] or (differences is not None and not args and not kwargs):
                raise AssertionError(f"{task} was enqueued.")

    def assert_nothing_enqueued(self) -> None:
        """Assert that no task was enqueued."""
        if self._enqueued:
            raise AssertionError("\n".join(["Enqueued was:", *(f"  {task}" for task in self._enqueued)]))

    def run(
        self,
        task: EnqueuedTask | None = None,
        *,
        attempts: int = 1,
        deliveries: int = 1,
        raise_errors: bool = True,
    ) -> TaskRun:
        """Run one task through the app, now, whatever its ETA; return its last attempt.

        Args:
            task: which; by default the only one that is pending.
            attempts: how often to try at most, while it fails, with the counts that the queue would send.
            deliveries: how often to deliver it in all once it has succeeded, for a queue delivers *at least* once.
            raise_errors: raise what the task raised in its last attempt.
        """
        if task is None:
            if len(self._pending) != 1:
                listed = "\n".join(f"  {pending}" for pending in self._pending)
                raise TaskRunError(f"run() without a task needs exactly one that is pending; there are:\n{listed}")
            task = self._pending[0]
        if attempts < 1 or deliveries < 1:
            raise ValueError("attempts and deliveries count from 1")
        for _ in range(attempts):
            last = self._attempt(task)
            if last.done:
                break
        for _ in range(deliveries - 1):
            if last.ok:
                last = self._attempt(task)
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
        """Run every task that is due by the clock, and what those enqueue in turn; return all attempts.

        Args:
            attempts: how often to try a task that fails.
            include_scheduled: run tasks with a later ETA, too.
            limit: how many tasks to run before :class:`TaskRunError` says that they don't come to an end.
            raise_errors: raise what a task raised in its last attempt, and leave the rest pending.
        """
        began = len(self.runs)
        tried: set[EnqueuedTask] = set()
        while due := self._due(tried, include_scheduled):
            if len(tried) >= limit:
                waiting = "\n".join(f"  {task}" for task in due[:5])
                raise TaskRunError(f"after {limit} tasks there are still more, which tasks enqueue:\n{waiting}")
            tried.add(due[0])
            self.run(due[0], attempts=attempts, raise_errors=raise_errors)
        return self.runs[began:]

    def _due(self, tried: set[EnqueuedTask], include_scheduled: bool) -> list[EnqueuedTask]:
        due = [task for task in self._pending if task not in tried and (include_scheduled or task.is_due(self.clock))]
        return sorted(due, key=lambda task: task.due_posix)

    def _attempt(self, task: EnqueuedTask) -> TaskRun:
        if self.app is None:
            raise TaskRunError("which app runs the tasks? Set deferred_tasks.app, or give it to capture_tasks(app).")
        before = self._attempts.get(task, Attempt())
        run = deliver(self.app, task, before)
        self.runs.append(run)
        self._attempts[task] = Attempt(
            retry_count=before.retry_count + 1,
            execution_count=before.execution_count + 1,
            previous_response=run.status,
        )
        if run.done and task in self._pending:
            self._pending.remove(task)
            self._stub.forget(task.queue, task.name)
        return run

    def _take(self, add: Any) -> None:
        """Note a task that was added, and in immediate mode run it."""
        task = _task_of(add, self.clock)
        self._enqueued.append(task)
        self._pending.append(task)
        if self.immediate:
            run = self._attempt(task)
            if not run.ok:
                self._immediate_failures.append(run)

    def _drop(self, queue: str, names: list[str] | None) -> None:
        """Note that the app deleted tasks, or purged a queue."""
        self._pending = [
            task for task in self._pending if task.queue != queue or (names is not None and task.name not in names)
        ]

    def _raise_immediate_failures(self) -> None:
        for run in self._immediate_failures:
            run.raise_if_failed()


@contextlib.contextmanager
def capture_tasks(
    app: WSGIApplication | None = None,
    *,
    queue_yaml: str | os.PathLike[str] | None = None,
    immediate: bool = False,
    clock: Clock | None = None,
) -> Iterator[DeferredTasks]:
    """Capture the tasks that are enqueued inside, instead of sending them anywhere.

    Args:
        app: the WSGI app that runs them.
        queue_yaml: a queue.yaml whose queues are the ones there are; by default every queue is there.
        immediate: run each task when it is enqueued; what one raises is raised at the end of the block.
        clock: what says what is due; by default the real time, which can be set forward.
    """
    tasks = DeferredTasks(app, queue_yaml=queue_yaml, immediate=immediate, clock=clock)
    with installed(tasks._stub):
        yield tasks
        tasks._raise_immediate_failures()


def _task_of(add: Any, clock: Clock) -> EnqueuedTask:
    headers = {h.key.decode("latin-1"): h.value.decode("latin-1") for h in add.header}
    host = next((value for name, value in headers.items() if name.lower() == "host"), "")
    now = datetime.datetime.now(datetime.timezone.utc)
    eta = datetime.datetime.fromtimestamp(add.eta_usec / 1e6, datetime.timezone.utc)
    call, error = None, None
    try:
        reference = overflow.Reference.parse(add.body, current_settings().max_payload_bytes)
        call = payload.loads(add.body if reference is None else overflow.fetch(reference))
    except DeferredError as problem:
        error = problem
    return EnqueuedTask(
        queue=add.queue_name.decode(),
        name=add.task_name.decode(),
        method=type(add).RequestMethod.Name(add.method),
        url=add.url.decode(),
        headers={name: value for name, value in headers.items() if name.lower() != "host"},
        body=add.body,
        eta=eta,
        enqueued=now,
        due_posix=clock() + max(0.0, (eta - now).total_seconds()),
        target=target_of(host),
        call=call,
        call_error=error,
    )

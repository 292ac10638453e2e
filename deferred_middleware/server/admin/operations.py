"""What people can see and do: the one layer behind the JSON API, the commands and the page.

Whoever asks passes an :class:`Actor`. A change is refused if the server only reads (``--read-only``), and every change
is written into the :class:`~deferred_middleware.server.admin.change_log.ChangeLog`. Answers are dictionaries that can
be written as JSON; ``docs/operations.rst`` describes them. What can't be done raises :class:`OperationError`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, get_args

from deferred_middleware.server.admin.change_log import Actor, ChangeLog
from deferred_middleware.server.admin.views import task_details, task_summary, view_of
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.queries import Waiting
from deferred_middleware.server.store.records import State, StoredTask
from deferred_middleware.server.store.store import TaskStore

STATES: tuple[str, ...] = get_args(State)
WAITING: tuple[str, ...] = get_args(Waiting)

_MAX_CALL_CHARACTERS = 200


class OperationError(Exception):
    """Something that can't be done. ``code`` is for programs, ``message`` for people; ``known`` is what there is."""

    def __init__(self, status: HTTPStatus, code: str, message: str, *, known: tuple[str, ...] = ()) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.known = known
        super().__init__(message)


class Operations:
    """Reads and changes of tasks and queues.

    ``queues`` returns the configured queues. ``wake_scheduler`` is called after each change. ``about`` is the
    description of the server. With ``read_only``, all changes are refused.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        queues: Callable[[], Mapping[str, QueueConfig]],
        wake_scheduler: Callable[[], None],
        about: Mapping[str, object],
        change_log: ChangeLog | None = None,
        read_only: bool = False,
    ) -> None:
        self.store = store
        self.about: dict[str, object] = dict(about)
        self.change_log: ChangeLog = change_log or ChangeLog(None)
        self.read_only = read_only
        self._queues = queues
        self._wake_scheduler = wake_scheduler

    # Reads.

    def list_queues(self) -> dict[str, Any]:
        """Return all queues, each with its numbers of tasks and its configuration."""
        counts = self.store.queries.counts()
        configured = self._queues()
        return {"queues": [self._queue(name, counts, configured) for name in sorted({*configured, *counts})]}

    def find_tasks(
        self,
        *,
        queue: str | None = None,
        state: str | None = None,
        function: str | None = None,
        before: int | None = None,
        limit: int = 100,
        calls: bool = False,
    ) -> dict[str, Any]:
        """Return a page of tasks, the newest first; with ``calls``, also each task's call as text."""
        if state is not None and state not in (*STATES, *WAITING):
            raise bad(f"state={state!r} is not a state; the states are {', '.join((*STATES, *WAITING))}.")
        if queue is not None:
            self.known_queue(queue)
        page = self.store.queries.find(
            queue=queue,
            state=None if state in WAITING else state,  # type: ignore[arg-type] # one of the states
            waiting=state if state in WAITING else None,  # type: ignore[arg-type] # one of the waits
            contains=function or None,
            before_id=before,
            limit=limit,
        )
        tasks = [task_summary(task) for task in page.tasks]
        if calls:
            tasks = [{**task, **self._call(task["id"])} for task in tasks]
        return {"tasks": tasks, "next_before": page.next_before_id}

    def show_task(self, queue_or_id: str, name: str | None = None) -> dict[str, Any]:
        """Return a task, given by its id or by its queue and name, with its payload and its attempts."""
        task = self.task(queue_or_id, name)
        return {"task": task_details(task, self.store.queries.attempts(task.id))}

    def task(self, queue_or_id: str, name: str | None = None) -> StoredTask:
        """Return a task, given by its id or by its queue and name."""
        if name is None:
            found = None
            if queue_or_id.isascii() and queue_or_id.isdecimal() and len(queue_or_id) < 19:
                found = self.store.queries.get_by_id(int(queue_or_id))
            shown = queue_or_id
        else:
            found = self.store.queries.get(queue_or_id, name)
            shown = f"{queue_or_id}/{name}"
        if found is None:
            raise OperationError(
                HTTPStatus.NOT_FOUND, "no-such-task", f"There is no task {shown!r}; it may be deleted."
            )
        return found

    def known_queue(self, queue: str) -> str:
        """Return the name of a queue that is configured or has tasks."""
        configured = self._queues()
        if queue not in configured and queue not in self.store.queries.counts():
            known = tuple(sorted({*configured, *self.store.queries.counts()}))
            raise OperationError(
                HTTPStatus.NOT_FOUND,
                "no-such-queue",
                f"There is no queue {queue!r}; the queues are: {', '.join(sorted(configured))}.",
                known=known,
            )
        return queue

    # Changes of one task.

    def run(self, actor: Actor, task: StoredTask) -> dict[str, Any]:
        """Run a waiting task now, whatever its ETA and the pause and rate of its queue."""
        return self._change(actor, "run", f"task {task.id}", lambda: self._run(task))

    def retry(self, actor: Actor, task: StoredTask) -> dict[str, Any]:
        """Run a dead letter again, like a new task."""
        return self._change(actor, "retry", f"task {task.id}", lambda: self._retry(task))

    def delete(self, actor: Actor, task: StoredTask) -> dict[str, Any]:
        """Delete a task in any state."""
        return self._change(actor, "delete", f"task {task.id}", lambda: self._delete(task))

    # Changes of queues.

    def pause(self, actor: Actor, queue: str) -> dict[str, Any]:
        """Start no task of a queue until it is resumed."""
        return self._queue_change(
            actor, "pause", queue, lambda: {"queue": queue, "changed": self.store.operations.pause(queue)}
        )

    def resume(self, actor: Actor, queue: str) -> dict[str, Any]:
        """Start the tasks of a paused queue again."""
        return self._queue_change(
            actor, "resume", queue, lambda: {"queue": queue, "changed": self.store.operations.resume(queue)}
        )

    def purge(self, actor: Actor, queue: str) -> dict[str, Any]:
        """Delete all unfinished tasks of a queue."""
        return self._queue_change(
            actor, "purge", queue, lambda: {"queue": queue, "deleted": self.store.operations.purge(queue)}
        )

    def retry_failed(self, actor: Actor, queue: str) -> dict[str, Any]:
        """Run all dead letters of a queue again."""
        return self._queue_change(
            actor, "retry", queue, lambda: {"queue": queue, "retried": self.store.operations.retry_failed(queue)}
        )

    def retry_all_failed(self, actor: Actor) -> dict[str, Any]:
        """Run all dead letters of all queues again."""

        def change() -> dict[str, Any]:
            queues = [name for name, numbers in self.store.queries.counts().items() if numbers.get("failed")]
            return {"retried": sum(self.store.operations.retry_failed(name) for name in queues)}

        return self._change(actor, "retry", "all queues", change)

    def delete_failed(self, actor: Actor, queue: str) -> dict[str, Any]:
        """Delete all dead letters of a queue."""
        return self._queue_change(
            actor,
            "delete-failed",
            queue,
            lambda: {"queue": queue, "deleted": self.store.operations.delete_failed(queue)},
        )

    def run_scheduled(self, actor: Actor, queue: str) -> dict[str, Any]:
        """Make the tasks of a queue due that wait for their ETA."""
        return self._queue_change(
            actor, "run-scheduled", queue, lambda: {"queue": queue, "made_due": self.store.operations.make_due(queue)}
        )

    def forget(self, actor: Actor, queue: str, name: str | None = None) -> dict[str, Any]:
        """Make a used name, or all used names of a queue, available again."""
        return self._queue_change(
            actor,
            "forget",
            queue,
            lambda: {"queue": queue, "forgotten": self.store.operations.unblock_names(queue, name)},
        )

    def _queue(
        self, name: str, counts: Mapping[str, Mapping[Any, int]], configured: Mapping[str, QueueConfig]
    ) -> dict[str, Any]:
        config = configured.get(name)
        numbers = counts.get(name, {})
        return {
            "name": name,
            "configured": config is not None,
            "paused": name in self.store.operations.paused(),
            **{state: numbers.get(state, 0) for state in STATES},
            **dataclasses.asdict(self.store.queries.backlog(name)),
            "executed_last_minute": self.store.queries.executed(name)[0],
            "config": None if config is None else dataclasses.asdict(config),
        }

    def _call(self, task_id: int) -> dict[str, Any]:
        """Return a task's call as text, and how long its last attempt took."""
        task = self.store.queries.get_by_id(task_id)
        attempts = self.store.queries.attempts(task_id)
        call = view_of(task.body) if task is not None else None
        return {
            "call": call.text[:_MAX_CALL_CHARACTERS] if call is not None and call.kind == "call" else None,
            "duration_usec": attempts[-1].duration_usec if attempts else None,
        }

    def _queue_change(
        self, actor: Actor, action: str, queue: str, change: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        self.known_queue(queue)
        return self._change(actor, action, f"queue {queue}", change)

    def _change(self, actor: Actor, action: str, subject: str, change: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.read_only:
            raise OperationError(
                HTTPStatus.FORBIDDEN, "read-only", "Nothing was changed: the server was started with --read-only."
            )
        answer = change()
        self.change_log.add(actor, action, subject, answer)
        self._wake_scheduler()
        return answer

    def _run(self, task: StoredTask) -> dict[str, Any]:
        if not self.store.force_run(task.id):
            now = self.store.queries.get_by_id(task.id)
            state = "gone" if now is None else now.state
            if state == "ready":
                raise conflict("not-waiting", f"Task {task.id} belongs to a pull queue: it is leased and never run.")
            hint = "; retry it instead" if state == "failed" else ""
            raise conflict("not-waiting", f"Task {task.id} is not waiting to run, it is {state}{hint}.")
        return {"task": task.id, "done": "run"}

    def _retry(self, task: StoredTask) -> dict[str, Any]:
        outcome = self.store.operations.retry(task.id)
        if outcome == "retried":
            return {"task": task.id, "done": "retry"}
        if outcome == "name taken":
            raise conflict("name-taken", f"A later task has the name of task {task.id}; delete one of them first.")
        hint = "; to start it at once, run it" if task.state == "ready" else ""
        raise conflict("not-failed", f"Task {task.id} has not failed for good, it is {task.state}{hint}.")

    def _delete(self, task: StoredTask) -> dict[str, Any]:
        if not self.store.operations.delete([task.id]):
            raise OperationError(HTTPStatus.NOT_FOUND, "no-such-task", f"Task {task.id} is gone already.")
        return {"task": task.id, "done": "delete"}


def bad(message: str) -> OperationError:
    """Return the error for what can't be understood."""
    return OperationError(HTTPStatus.BAD_REQUEST, "bad-request", message)


def conflict(code: str, message: str) -> OperationError:
    """Return the error for what the state of a task doesn't allow."""
    return OperationError(HTTPStatus.CONFLICT, code, message)

"""What people can see and do: the one layer behind the JSON API, the commands and the page.

Whoever asks passes an :class:`Actor`. A change is refused if the server only reads (``--read-only``), and every change
is written into the :class:`~deferred_middleware.server.admin.change_log.ChangeLog`. Answers are dictionaries that can
be written as JSON; ``docs/operations.rst`` describes them. What can't be done raises :class:`OperationError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Literal, get_args

from deferred_middleware.errors import UntrustedRequestError
from deferred_middleware.server.admin.change_log import Actor, ChangeLog
from deferred_middleware.server.admin.operation_errors import OperationError, conflict
from deferred_middleware.server.admin.reading.reads import Reads
from deferred_middleware.server.admin.reading.search import TaskSearch, described
from deferred_middleware.server.admin.reading.standing import NOTHING_RUNS, ServerStanding
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.records import Headers, StoredTask
from deferred_middleware.server.store.store import TaskStore

Action = Literal["run", "retry", "delete"]
ACTIONS: tuple[str, ...] = get_args(Action)
"""What can be done to several tasks."""

_MATCHING_BATCH = 500
_STANDS = {
    "held": "its transaction is not committed yet",
    "ready": "it waits to run",
    "running": "it is running",
    "succeeded": "it has succeeded",
    "failed": "it has failed for good",
    "gone": "it is gone",
}


class Operations(Reads):
    """Reads and changes of tasks and queues.

    ``wake_scheduler`` is called after each change. ``moved`` returns the headers that a task has in another queue. With
    ``read_only``, all changes are refused. For the other arguments see :class:`Reads`.
    """

    def __init__(
        self,
        store: TaskStore,
        *,
        queues: Callable[[], Mapping[str, QueueConfig]],
        wake_scheduler: Callable[[], None],
        about: Mapping[str, object],
        standing: ServerStanding = NOTHING_RUNS,
        moved: Callable[[StoredTask, str], Headers] = lambda task, _queue: task.headers,
        change_log: ChangeLog | None = None,
        read_only: bool = False,
    ) -> None:
        super().__init__(store, queues=queues, about=about, standing=standing)
        self.change_log: ChangeLog = change_log or ChangeLog(None)
        self.read_only = read_only
        self._wake_scheduler = wake_scheduler
        self._moved = moved

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

    def set_eta(self, actor: Actor, task: StoredTask, eta_usec: int) -> dict[str, Any]:
        """Change the ETA of a waiting task, also of one that waits for another attempt."""

        def change() -> dict[str, Any]:
            if not self.store.purges.set_eta(task.id, eta_usec):
                raise self._not_waiting(task)
            return {"task": task.id, "eta_usec": eta_usec}

        return self._change(actor, "set ETA", f"task {task.id}", change)

    def move(self, actor: Actor, task: StoredTask, queue: str) -> dict[str, Any]:
        """Move a waiting task to another push queue."""
        self.known_queue(queue)
        if self.config_of(queue).mode == "pull":
            raise conflict("pull-queue", f"Queue {queue} is a pull queue, whose tasks are never run.")

        try:
            headers = self._moved(task, queue)
        except UntrustedRequestError as error:
            problem = f"Task {task.id} can't be moved: {error}, so the app would refuse it there."
            raise conflict("not-movable", problem) from error

        def change() -> dict[str, Any]:
            outcome = self.store.purges.move(task.id, queue, headers)
            if outcome == "name taken":
                raise conflict("name-taken", f"A task of queue {queue} has the name {task.name!r}, or had it.")
            if outcome != "moved":
                raise self._not_waiting(task)
            return {"task": task.id, "queue": queue}

        return self._change(actor, "move", f"task {task.id}", change)

    # Changes of several tasks.

    def change_tasks(self, actor: Actor, action: Action, task_ids: Iterable[int]) -> dict[str, Any]:
        """Run, retry or delete tasks; those whose state doesn't allow it any more are skipped."""

        def change() -> dict[str, Any]:
            ids = list(task_ids)
            done = self._apply(action, ids)
            return {"done": done, "skipped": len(ids) - done}

        return self._change(actor, action, "selected tasks", change)

    def change_matching(self, actor: Actor, action: Action, search: TaskSearch, *, newest_id: int) -> dict[str, Any]:
        """Run, retry or delete all tasks that match a search, up to the one with ``newest_id``."""

        def change() -> dict[str, Any]:
            done = seen = 0
            before: int | None = newest_id + 1
            while before is not None:
                page = self.search(search, before=before, limit=_MATCHING_BATCH)
                done += self._apply(action, [task.id for task in page.tasks])
                seen += len(page.tasks)
                before = page.next_before_id
            return {"done": done, "skipped": seen - done}

        return self._change(actor, action, "tasks that match " + described(search), change)

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
        """Delete all unfinished tasks of a queue. For ten minutes, this can be undone."""

        def change() -> dict[str, Any]:
            purge = self.store.purges.purge(queue)
            return {"queue": queue, "deleted": purge.tasks, "undo_until_usec": purge.until_usec}

        return self._queue_change(actor, "purge", queue, change)

    def undo_purge(self, actor: Actor, queue: str) -> dict[str, Any]:
        """Bring the tasks of the last purge of a queue back."""

        def change() -> dict[str, Any]:
            purge = next((one for one in self.store.purges.list() if one.queue == queue), None)
            if purge is None:
                raise conflict(
                    "nothing-to-undo", f"No purge of queue {queue} can be undone; ten minutes are the limit."
                )
            restored, refused = self.store.purges.undo(purge)
            return {"queue": queue, "restored": restored, "refused": refused}

        return self._change(actor, "undo purge", f"queue {queue}", change)

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

    def change(self, actor: Actor, action: str, subject: str, change: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Make a change, unless the server only reads, and write it into the log of changes."""
        return self._change(actor, action, subject, change)

    def _queue_change(
        self, actor: Actor, action: str, queue: str, change: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        self.known_queue(queue)
        return self._change(actor, action, f"queue {queue}", change)

    def control(self, actor: Actor, action: str, change: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Make one of the changes for tests; see :mod:`~deferred_middleware.server.admin.controls`."""
        return self._change(actor, action, "the server", change)

    def _change(self, actor: Actor, action: str, subject: str, change: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if self.read_only:
            raise OperationError(
                HTTPStatus.FORBIDDEN, "read-only", "Nothing was changed: the server was started with --read-only."
            )
        answer = change()
        self.change_log.add(actor, action, subject, answer)
        self._wake_scheduler()
        return answer

    def _apply(self, action: Action, task_ids: Sequence[int]) -> int:
        """Return for how many of the tasks the state allowed the action."""
        if action == "delete":
            return self.store.operations.delete(task_ids)
        if action == "run":
            return sum(self.store.force_run(task_id) for task_id in task_ids)
        return sum(self.store.operations.retry(task_id) == "retried" for task_id in task_ids)

    def _run(self, task: StoredTask) -> dict[str, Any]:
        if not self.store.force_run(task.id):
            raise self._not_waiting(task)
        return {"task": task.id, "done": "run"}

    def _not_waiting(self, task: StoredTask) -> OperationError:
        now = self.store.queries.get_by_id(task.id, or_held=True)
        state = "gone" if now is None else now.state
        if state == "held":
            return _held(task)
        if self.store.queries.is_claimed(task.id) and state == "ready":
            return conflict("not-waiting", f"Task {task.id} is the next that its service runs.")
        if state == "ready":
            return conflict("not-waiting", f"Task {task.id} belongs to a pull queue: it is leased and never run.")
        hint = "; retry it instead" if state == "failed" else ""
        return conflict("not-waiting", f"Task {task.id} is not waiting to run: {_STANDS[state]}{hint}.")

    def _retry(self, task: StoredTask) -> dict[str, Any]:
        outcome = self.store.operations.retry(task.id)
        if outcome == "retried":
            return {"task": task.id, "done": "retry"}
        if outcome == "name taken":
            raise conflict("name-taken", f"A later task has the name of task {task.id}; delete one of them first.")
        hint = "; to start it at once, run it" if task.state == "ready" else ""
        raise conflict("not-failed", f"Task {task.id} has not failed for good: {_STANDS[task.state]}{hint}.")

    def _delete(self, task: StoredTask) -> dict[str, Any]:
        if not self.store.operations.delete([task.id]):
            if self.store.queries.get_by_id(task.id, or_held=True) is not None:
                raise _held(task)
            raise OperationError(HTTPStatus.NOT_FOUND, "no-such-task", f"Task {task.id} is gone already.")
        return {"task": task.id, "done": "delete"}


def _held(task: StoredTask) -> OperationError:
    return conflict("not-waiting", f"Task {task.id} is held until its transaction is committed; nothing changes it.")

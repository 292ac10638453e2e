"""Bugs that are planted in the server's code, to show that the simulation finds them."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any
from unittest import mock

from deferred_middleware.server.dispatch.clock import WatchedClock
from deferred_middleware.server.dispatch.queue_limits import QueueLimits, TokenBucket
from deferred_middleware.server.dispatch.result_writer import ResultWriter
from deferred_middleware.server.store import rows, transactional
from deferred_middleware.server.store.claims import Claim, Claims
from deferred_middleware.server.store.counts import Tally, TaskCounts
from deferred_middleware.server.store.records import Completion
from deferred_middleware.server.store.transactional import TransactionalTasks
from deferred_middleware.server.store.writer import GroupCommit

Bug = Callable[[], contextlib.AbstractContextManager[object]]
BUGS: dict[str, Bug] = {}


def bug(function: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
    """Add a bug to the list."""
    BUGS[function.__name__.replace("_", " ")] = contextlib.contextmanager(function)
    return function


def _replaced(where: object, name: str, new: object) -> Iterator[None]:
    with mock.patch.object(where, name, new):
        yield


@bug
def claim_not_fenced() -> Iterator[None]:
    """The result of any attempt is written, whether its claim holds or not."""
    get = Claims.get

    def any_claim(claims: Claims, task_id: int, token: int) -> Claim | None:
        return claims._claims.get(task_id) or get(claims, task_id, token)

    unfenced = rows._COMPLETE.replace("AND retry_count = ?", "AND retry_count >= 0 * ?")
    with mock.patch.object(rows, "_COMPLETE", unfenced), mock.patch.object(Claims, "get", any_claim):
        yield


@bug
def sync_skipped() -> Iterator[None]:
    """No commit is synced."""
    set_level = GroupCommit._set_synchronous
    yield from _replaced(GroupCommit, "_set_synchronous", lambda writer, _level: set_level(writer, "NORMAL"))


@bug
def claim_ends_before_the_commit() -> Iterator[None]:
    """The claim of a task ends when its result is handed in, before it is stored."""
    submit = ResultWriter.submit

    def submit_and_end(results: ResultWriter, completion: Completion) -> None:
        submit(results, completion)
        results._store._claims.end([completion.task_id])

    yield from _replaced(ResultWriter, "submit", submit_and_end)


@bug
def back_off_by_the_wall_clock() -> Iterator[None]:
    """The ETAs of retries are not moved when the clock is set."""

    def ignore(clock: WatchedClock, _now: float, offset: float) -> None:
        clock._offset = offset

    yield from _replaced(WatchedClock, "_handle_jump", ignore)


@bug
def lost_wake_up() -> Iterator[None]:
    """Nobody wakes the scheduler when a task is due again."""
    yield from _replaced(ResultWriter, "_written", lambda *_: None)


@bug
def acknowledged_before_the_commit() -> Iterator[None]:
    """The futures of operations are resolved when the operations have run."""
    run_one = GroupCommit._run_one

    def run_and_tell(writer: Any, operation: Any, tally: Tally) -> tuple[Any, Exception | None]:
        result, failure = run_one(writer, operation, tally)
        for pending in writer.running:
            if pending.operation is operation and failure is None and not pending.future.done():
                pending.future.set_result(result)
        return result, failure

    transact = GroupCommit._transact

    def remember(writer: Any, delayed: Any, batch: Any) -> Any:
        writer.running = batch
        return transact(writer, delayed, batch)

    steps = GroupCommit.commit_steps

    def forgiving(writer: Any, delayed: Any, batch: Any) -> Any:
        # The second answer to a future is an error.
        with contextlib.suppress(Exception):
            yield from steps(writer, delayed, batch)

    with (
        mock.patch.object(GroupCommit, "_run_one", run_and_tell),
        mock.patch.object(GroupCommit, "_transact", remember),
        mock.patch.object(GroupCommit, "commit_steps", forgiving),
    ):
        yield


@bug
def tokens_not_taken() -> Iterator[None]:
    """Attempts cost no tokens."""
    yield from _replaced(TokenBucket, "take", lambda *_: None)


@bug
def in_flight_forgotten() -> Iterator[None]:
    """A queue's attempts in flight are not counted."""

    def claimed(limits: QueueLimits, queue: str, number: int, *, forced: bool = False) -> None:
        state = limits._state(queue)
        if forced:
            state.forced += number
        else:
            state.reserved += number

    yield from _replaced(QueueLimits, "claimed", claimed)


@bug
def released_tasks_keep_their_tokens() -> Iterator[None]:
    """A task that is withdrawn stays in flight for its queue."""
    yield from _replaced(QueueLimits, "released", lambda *_: None)


@bug
def counts_only_grow() -> Iterator[None]:
    """Tasks that leave a state are not counted."""
    yield from _replaced(TaskCounts, "write", staticmethod(_write_some_counts))


def _write_some_counts(connection: sqlite3.Connection, tally: Tally) -> None:
    changes = [(*key, number) for key, number in tally.items() if number > 0 and key[1] != "executed"]
    connection.executemany(
        "INSERT INTO counts VALUES (?, ?, ?)"
        " ON CONFLICT (queue, state) DO UPDATE SET number = number + excluded.number",
        changes,
    )


@bug
def staged_tasks_always_committed() -> Iterator[None]:
    """A new server commits all staged tasks."""
    recover = TransactionalTasks.recover

    def recover_all(tasks: TransactionalTasks, _committed: Collection[str]) -> None:
        found = tasks._database.read(transactional._TRANSACTIONS)
        recover(tasks, {row[0] for row in found})

    yield from _replaced(TransactionalTasks, "recover", recover_all)


@bug
def names_not_looked_up() -> Iterator[None]:
    """A name is given to a second task."""
    yield from _replaced(rows, "find_name", lambda *_: None)


@bug
def bound_ignored() -> Iterator[None]:
    """Tasks begin, however many results are not stored."""
    yield from _replaced(ResultWriter, "room", lambda *_: math.inf)


@bug
def claims_not_left_out() -> Iterator[None]:
    """A search for due tasks finds those that are claimed."""

    def none_taken(_claims: Claims, _lane: object) -> Iterable[int]:
        return []

    yield from _replaced(Claims, "taken_in", none_taken)

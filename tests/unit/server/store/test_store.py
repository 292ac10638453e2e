"""The task store, on real files."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store import queries
from deferred_middleware.server.store import store as store_module
from deferred_middleware.server.store.database import Parameters
from deferred_middleware.server.store.records import Lane, NewTask, RetryPolicy
from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep import pruning
from deferred_middleware.server.store.upkeep.disk_reserve import StoreFullError
from tests.support.storing import (
    DAY_USEC,
    LANE,
    NOW,
    Clock,
    completion,
    counted_commits,
    new_task,
    prune,
    run_all,
    stored_tasks,
)


def test_what_is_added_is_claimed_whole(store: TaskStore) -> None:
    """A claimed task has all fields that were added."""
    task = NewTask(
        queue="default",
        name="one",
        url="/work",
        eta_usec=NOW - 5,
        method="PUT",
        target="",
        headers=(("X-One", "caf\xe9"), ("X-One", "two")),
        body=b"\x00\xff",
        retry=RetryPolicy(retry_limit=3, max_backoff_seconds=7),
        dispatch_deadline_usec=15_000_000,
    )
    store.add([task])
    (claimed,) = store.claim({LANE: 5}, NOW)
    for field in ("queue", "name", "url", "eta_usec", "method", "headers", "body", "retry", "dispatch_deadline_usec"):
        assert getattr(claimed, field) == getattr(task, field)
    assert (claimed.state, claimed.retry_count, claimed.execution_count) == ("running", 0, 0)
    assert (claimed.previous_response, claimed.retry_reason, claimed.first_attempt_usec) == (None, None, None)


def test_chosen_names_are_digits_and_unique(store: TaskStore) -> None:
    """Tasks without names get distinct names of digits, even if the clock stands still."""
    names = [result.name for result in store.add([new_task() for _ in range(500)])]
    assert len(set(names)) == 500
    assert all(name.isdigit() for name in names)


def test_chosen_names_begin_with_the_time_and_are_not_chosen_again(
    store: TaskStore, clock: Clock, tmp_path: Path
) -> None:
    """A name begins with the microseconds of its choice, and a restarted server repeats none."""
    names = [store.add([new_task()])[0].name for _ in range(3)]
    assert [int(name[:16]) for name in names] == [NOW, NOW + 1, NOW + 2]
    assert {len(name) for name in names} == {20}
    run_all(store)
    path = Path(store._database.read("PRAGMA database_list")[0][2])
    store.close()
    clock.usec += 10
    with contextlib.closing(TaskStore(path, clock=clock)) as reopened:
        later = [result.name for result in reopened.add([new_task() for _ in range(3)])]
    assert not set(names) & set(later)
    assert min(later) > max(names)


def test_a_deleted_tasks_chosen_name_stays_blocked(store: TaskStore) -> None:
    """A name that the server chose is blocked after its task was deleted, as one that the app chose."""
    name = store.add([new_task()])[0].name
    assert store.operations.delete_by_name("default", [name])[0] is not None
    assert store.add([new_task(name)])[0].outcome == "tombstoned"


def test_a_taken_name_differs_from_a_tombstone(store: TaskStore) -> None:
    """An unfinished task's name is taken and a finished task's name is tombstoned; other tasks are added."""
    assert [result.outcome for result in store.add([new_task("a"), new_task("a"), new_task("b")])] == [
        "added",
        "exists",
        "added",
    ]
    run_all(store)
    assert [result.outcome for result in store.add([new_task("a"), new_task("c")])] == ["tombstoned", "added"]


def test_a_name_is_unique_per_queue(store: TaskStore) -> None:
    """Two queues may each have a task of the same name."""
    results = store.add([new_task("a"), new_task("a", queue="other")])
    assert [result.outcome for result in results] == ["added", "added"]


def test_claims_are_in_order_of_eta_and_not_early(store: TaskStore) -> None:
    """Due tasks are claimed in the order of their ETAs, up to the limit and never early."""
    store.add([new_task(f"t{offset}", eta_usec=NOW + offset) for offset in (3, 1, 2, 50)])
    assert [task.name for task in store.claim({LANE: 2}, NOW + 10)] == ["t1", "t2"]
    assert [task.name for task in store.claim({LANE: 5}, NOW + 10)] == ["t3"]
    assert store.claim({LANE: 5}, NOW + 10) == []


def test_each_lane_has_its_next_eta(store: TaskStore) -> None:
    """Each queue and target with waiting tasks is a lane with its earliest ETA."""
    assert store.queries.lanes() == []
    store.add([new_task(eta_usec=NOW + 5), new_task(eta_usec=NOW + 2), new_task(target="local.b", eta_usec=NOW + 1)])
    store.add([new_task(queue="other", eta_usec=NOW + 9)])
    assert store.queries.lanes() == [
        (Lane("default", ""), NOW + 2),
        (Lane("default", "local.b"), NOW + 1),
        (Lane("other", ""), NOW + 9),
    ]
    store.claim({Lane("default", "local.b"): 1}, NOW + 1)
    assert store.queries.lanes() == [(Lane("default", ""), NOW + 2), (Lane("other", ""), NOW + 9)]


def test_the_lanes_cost_no_more_with_more_tasks_in_them(store: TaskStore) -> None:
    """Finding the lanes takes the same work however many tasks wait in them."""
    steps = []
    for number in (10, 5000):
        store.add([new_task(target=target) for target in ("", "local.b") for _ in range(number)])
        counted = [0]

        def count(counted: list[int] = counted) -> int:
            counted[0] += 1
            return 0

        connection = store._database.lanes_reader._connection
        connection.set_progress_handler(count, 10)
        assert len(store.queries.lanes()) == 2
        connection.set_progress_handler(None, 10)
        steps.append(counted[0])
    assert steps[1] <= steps[0] + 5


def test_claims_and_next_etas_use_the_index_of_waiting_tasks(store: TaskStore, tmp_path: Path) -> None:
    """Neither a claim nor the search for the next ETA reads the whole table."""
    connection = sqlite3.connect(tmp_path / "tasks.sqlite")
    try:
        for sql, parameters in (
            (store_module._CLAIMABLE, ("", "", 0, "[]", 0)),
            (queries.NEXT_UNCLAIMED, ("", "", "[]")),
            (queries.NEXT_QUEUE, ("",)),
            (queries.NEXT_TARGET, ("", "")),
        ):
            plan = " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters))
            assert "INDEX tasks_ready" in plan
            assert not re.search(r"SCAN (TABLE )?(tasks|payloads)", plan)
            assert "TEMP B-TREE" not in plan
    finally:
        connection.close()


def test_a_retry_keeps_counts_and_attempts(store: TaskStore) -> None:
    """A task that will be retried is due at its new ETA and keeps its counts and attempts."""
    store.add([new_task("a")])
    for number in (1, 2):
        (claimed,) = store.claim({LANE: 1}, NOW + number)
        assert store.complete([completion(claimed, "ready", eta_usec=NOW + number + 1)]) == [True]
    (claimed,) = store.claim({LANE: 1}, NOW + 3)
    assert (claimed.retry_count, claimed.execution_count, claimed.previous_response) == (2, 2, 500)
    assert claimed.retry_reason == "App Error"
    assert [attempt.number for attempt in store.queries.attempts(claimed.id)] == [1, 2]
    assert store.queries.attempts(claimed.id)[0].excerpt == b"oops"


def test_a_stale_result_changes_nothing(store: TaskStore) -> None:
    """A result whose claim is no longer valid is rejected, and the task is not changed."""
    store.add([new_task("a")])
    (first,) = store.claim({LANE: 1}, NOW)
    assert store.release([first]) == 1
    (second,) = store.claim({LANE: 1}, NOW)
    assert store.complete([completion(first)]) == [False]
    task = store.queries.get("default", "a")
    assert task is not None
    assert task.state == "running"
    assert store.queries.attempts(task.id) == []
    assert store.complete([completion(second), completion(second)]) == [True, False]


def test_a_released_task_is_due_again_without_an_attempt(store: TaskStore) -> None:
    """A release counts no attempt, and only valid claims are released."""
    store.add([new_task("a")])
    claimed = store.claim({LANE: 1}, NOW)
    assert store.release(claimed) == 1
    assert store.release(claimed) == 0
    (again,) = store.claim({LANE: 1}, NOW)
    assert again.retry_count == 0


def test_counts_follow_the_tasks(store: TaskStore, tmp_path: Path, clock: Clock) -> None:
    """The counts match the tasks in each state, also after a restart."""
    store.add([new_task(f"t{number}") for number in range(6)])
    claimed = store.claim({LANE: 5}, NOW)
    store.complete([completion(claimed[0]), completion(claimed[1], "failed")])
    store.release([claimed[2]])
    store.operations.delete_by_name("default", ["t3"])
    expected = {"default": {"ready": 2, "running": 1, "succeeded": 1, "failed": 1}}
    assert store.queries.counts() == expected
    store.close()
    reopened = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    assert reopened.queries.counts() == {"default": {"ready": 3, "succeeded": 1, "failed": 1}}
    reopened.close()


def test_deleting_blocks_the_name(store: TaskStore) -> None:
    """Deleting a task drops its late result and blocks its name."""
    store.add([new_task("a")])
    (claimed,) = store.claim({LANE: 1}, NOW)
    assert [result and result.outcome for result in store.operations.delete_by_name("default", ["a", "b"])] == [
        "exists",
        None,
    ]
    assert store.complete([completion(claimed)]) == [False]
    assert store.queries.get("default", "a") is None
    assert [result and result.outcome for result in store.operations.delete_by_name("default", ["a"])] == ["tombstoned"]
    assert store.add([new_task("a")])[0].outcome == "tombstoned"


def test_a_tombstone_expires_after_nine_days(store: TaskStore, clock: Clock) -> None:
    """A blocked name can be used again after nine days."""
    store.add([new_task("a")])
    store.operations.delete_by_name("default", ["a"])
    clock.usec += 9 * DAY_USEC - 1_000_000
    assert store.add([new_task("a")])[0].outcome == "tombstoned"
    clock.usec += 2_000_000
    assert store.add([new_task("a")])[0].outcome == "added"


def test_purging_leaves_the_history_and_other_queues(store: TaskStore) -> None:
    """A purge deletes the unfinished tasks of one queue only."""
    store.add([new_task("done")])
    run_all(store)
    store.add([new_task("a"), new_task("b"), new_task("c", queue="other")])
    assert store.operations.purge("default") == 2
    assert store.queries.counts() == {"default": {"succeeded": 1}, "other": {"ready": 1}}


def test_old_succeeded_tasks_are_deleted_and_dead_letters_kept(store: TaskStore, clock: Clock) -> None:
    """After seven days, a succeeded task is deleted and its name stays blocked; a dead letter is kept."""
    store.add([new_task("good")])
    run_all(store)
    store.add([new_task("bad")])
    run_all(store, "failed")
    clock.usec += 7 * DAY_USEC + 1_000_000
    assert prune(store) == 1
    assert store.queries.counts() == {"default": {"failed": 1}}
    assert store.add([new_task("good")])[0].outcome == "tombstoned"


@pytest.mark.retention(succeeded_tasks=3)
def test_succeeded_tasks_are_kept_up_to_a_number(store: TaskStore) -> None:
    """If there are more succeeded tasks than are kept, the oldest of them are deleted."""
    for number in range(5):
        store.add([new_task(f"t{number}")])
        run_all(store, finished_usec=NOW + number)
    assert prune(store) == 2
    assert sorted(task.name for task in stored_tasks(store, state="succeeded")) == ["t2", "t3", "t4"]


@pytest.mark.retention(succeeded_tasks=0)
def test_pruning_happens_by_itself(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy store prunes old tasks by itself."""
    monkeypatch.setattr(pruning, "_PRUNE_EVERY_RESULTS", 4)
    for _ in range(4):
        store.add([new_task()])
        run_all(store)
    store.add([new_task()])  # The results have submitted the prune, so it is committed before this add.
    assert store.queries.counts() == {"default": {"ready": 1}}


def test_pending_operations_share_a_commit(store: TaskStore) -> None:
    """Operations that are submitted during a commit share the next commit."""
    entered, go_on = threading.Event(), threading.Event()

    def hold_up(*_: object) -> None:
        entered.set()
        assert go_on.wait(10)

    threading.Thread(target=store._writer.submit, args=(hold_up,), daemon=True).start()
    assert entered.wait(10)
    with counted_commits(store) as commits:
        futures = [store._writer.submit(lambda connection, tally: None) for _ in range(50)]
        go_on.set()
        for future in futures:
            future.result(10)
    assert len(commits) == 2


def test_one_failing_operation_fails_alone(store: TaskStore) -> None:
    """If an operation raises, it is undone and its caller gets the error; other operations are committed."""
    entered, go_on = threading.Event(), threading.Event()

    def hold_up(*_: object) -> None:
        entered.set()
        assert go_on.wait(10)

    def fail(connection: sqlite3.Connection, tally: object) -> None:
        connection.execute("DELETE FROM tasks")
        raise RuntimeError("no")

    store.add([new_task("kept")])
    threading.Thread(target=store._writer.submit, args=(hold_up,), daemon=True).start()
    assert entered.wait(10)
    failing = store._writer.submit(fail)
    adding = threading.Thread(target=store.add, args=([new_task("added")],))
    adding.start()
    go_on.set()
    with pytest.raises(RuntimeError, match="no"):
        failing.result(10)
    adding.join(10)
    assert {task.name for task in stored_tasks(store)} == {"kept", "added"}


def test_a_caller_commits_in_its_own_thread_while_nobody_else_does(store: TaskStore) -> None:
    """An operation runs in the caller's thread, unless a commit is going on; then the writer's thread runs it."""
    entered, go_on = threading.Event(), threading.Event()

    def hold_up(*_: object) -> None:
        entered.set()
        assert go_on.wait(10)

    def thread_name(*_: object) -> str:
        return threading.current_thread().name

    assert store._writer.submit(thread_name).result(10) == threading.current_thread().name
    threading.Thread(target=store._writer.submit, args=(hold_up,), daemon=True).start()
    assert entered.wait(10)
    waiting = store._writer.submit(thread_name)
    go_on.set()
    assert waiting.result(10) == "store-writer"


def test_a_callers_operations_keep_their_order(store: TaskStore) -> None:
    """Operations of one thread run in the order of their submission, whichever threads run them."""
    written: list[tuple[int, int]] = []

    def submit(thread: int) -> None:
        for number in range(200):
            future = store._writer.submit(lambda *_, key=(thread, number): written.append(key))
        future.result(10)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(written) == 800
    for thread_number in range(4):
        assert [number for thread, number in written if thread == thread_number] == list(range(200))


def test_delayable_operations_share_the_next_commit(store: TaskStore) -> None:
    """Delayable operations are committed with the next operation, and run before it."""
    entered, go_on = threading.Event(), threading.Event()

    def hold_up(*_: object) -> None:
        entered.set()
        assert go_on.wait(10)

    written: list[int] = []
    threading.Thread(target=store._writer.submit, args=(hold_up,), daemon=True).start()
    assert entered.wait(10)
    with counted_commits(store) as commits:
        last = store._writer.submit(lambda *_: written.append(20))
        delayable = [store._writer.submit(lambda *_, n=n: written.append(n), delayable=True) for n in range(20)]
        go_on.set()
        for future in [last, *delayable]:
            future.result(10)
    assert written == list(range(21))
    assert len(commits) == 2


def test_a_delayable_operation_is_committed_alone(store: TaskStore) -> None:
    """A delayable operation is committed soon, even if no other operation follows."""
    store._writer.submit(lambda *_: None, delayable=True).result(10)


def test_one_failing_delayable_operation_fails_alone(store: TaskStore) -> None:
    """If a delayable operation raises, only that one is undone."""

    def add_tombstone(name: str) -> Callable[[sqlite3.Connection, object], object]:
        return lambda connection, _: connection.execute("INSERT INTO tombstones VALUES ('default', ?, 1)", (name,))

    futures = [store._writer.submit(add_tombstone(name), delayable=True) for name in ("a", "b", "a", "c")]
    store.close()
    assert [type(future.exception(10)) for future in futures] == [
        type(None),
        type(None),
        sqlite3.IntegrityError,
        type(None),
    ]


def test_a_full_disk_fails_the_add_and_nothing_else(store: TaskStore) -> None:
    """If the file can't grow, adding fails and stored tasks stay; when it can grow again, adding works."""
    store.add([new_task("before")])
    pages = store._writer.submit(
        lambda connection, tally: connection.execute("PRAGMA page_count").fetchone()[0]
    ).result()
    store._writer.submit(
        lambda connection, tally: connection.execute(f"PRAGMA max_page_count={pages}").fetchall()
    ).result()
    big = NewTask(queue="default", name="big", url="/work", eta_usec=NOW, body=b"x" * 100_000)
    with pytest.raises(StoreFullError, match="make space"):
        store.add([big])
    assert store.queries.counts() == {"default": {"ready": 1}}
    store._writer.submit(
        lambda connection, tally: connection.execute("PRAGMA max_page_count=1000000").fetchall()
    ).result()
    assert store.add([big])[0].outcome == "added"


def test_every_caller_gets_an_error_if_the_writer_fails(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the writer fails, pending and later operations get an error, and the failure is logged."""

    def die(*_: object) -> None:
        raise MemoryError("gone")

    monkeypatch.setattr(store._writer, "_commit", die)
    with pytest.raises(ServerError, match="gone"):
        store.add([new_task()])
    with pytest.raises(ServerError, match="stopped writing"):
        store.add([new_task()])
    assert "The task store stopped writing (gone); restart the server." in caplog.text


def test_claims_are_not_committed_and_adds_and_results_are_synced(store: TaskStore) -> None:
    """An add and a result are committed with synchronous=FULL (2); a claim and a release write nothing."""
    with counted_commits(store) as commits:
        store.add([new_task()])
        claimed = store.claim({LANE: 1}, NOW)
        assert store.release(claimed) == 1
        assert len(commits) == 1
        store.complete([completion(task) for task in store.claim({LANE: 1}, NOW)])
    assert len(commits) == 2
    assert store._writer._synchronous == "FULL"


def test_a_first_success_needs_no_row_of_its_own_and_its_history_is_the_same(store: TaskStore) -> None:
    """The only attempt of a task that succeeded at once is kept in the task's row; any other attempt has its own."""
    store.add([new_task(name) for name in ("good", "gave a reason", "late", "bad")])
    differences: dict[str, dict[str, Any]] = {
        "good": {"reason": None, "scheduled_usec": 0},
        "gave a reason": {},
        "late": {"started_usec": NOW + 1},
        "bad": {},
    }
    for name, changes in differences.items():
        (claimed,) = store.claim({LANE: 1}, NOW)
        assert claimed.name == name
        result = completion(claimed, "failed" if name == "bad" else "succeeded", excerpt=b"said this")
        attempt = dataclasses.replace(result.attempt, **changes)
        assert store.complete([dataclasses.replace(result, attempt=attempt)]) == [True]
        assert store.queries.attempts(claimed.id) == [attempt]
    assert store._database.read("SELECT count(*) FROM attempts")[0][0] == 3


def test_the_version_of_the_store_follows_the_claims(store: TaskStore) -> None:
    """A claim, a release, an add and a result each change the number by which watchers notice a change."""
    seen = [store.queries.version()]

    def look() -> None:
        seen.append(store.queries.version())

    store.add([new_task()])
    look()
    claimed = store.claim({LANE: 1}, NOW)
    look()
    store.release(claimed)
    look()
    run_all(store)
    look()
    assert len(set(seen)) == len(seen)


def test_a_task_that_ends_while_others_are_found_is_not_claimed_again(store: TaskStore) -> None:
    """If a result is stored or a task deleted during a search for due tasks, an old read doesn't bring it back."""
    store.add([new_task(name) for name in ("finished", "deleted", "waiting")])
    (finished,) = store.claim({LANE: 1}, NOW)
    read = store._database.lanes_reader.read

    def read_before_the_end(sql: str, parameters: Parameters) -> list[object]:
        # As another thread may do it: what was read is a moment old when it is used.
        found = read(sql, parameters)
        store.complete([completion(finished)])
        store.operations.delete_by_name("default", ["deleted"])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._database.lanes_reader, "read", read_before_the_end)
        assert [task.name for task in store.claim({LANE: 3}, NOW)] == ["waiting"]
    assert store.claim({LANE: 3}, NOW) == []


def test_acknowledged_tasks_survive_a_kill_and_those_in_flight_run_again(tmp_path: Path) -> None:
    """After a server is killed, acknowledged tasks and results are stored, and running tasks are due."""
    path = tmp_path / "tasks.sqlite"
    script = f"""
import os
from pathlib import Path
from deferred_middleware.server.store.records import *
from deferred_middleware.server.store.store import TaskStore
store = TaskStore(Path({str(path)!r}))
new = lambda name: NewTask(queue="default", name=name, url="/", eta_usec=1)
store.add([new("done"), new("running"), new("waiting")])
done, running = store.claim({{Lane("default", ""): 2}}, 5)
attempt = AttemptRecord(number=1, started_usec=1, duration_usec=1, status=200, reason=None, service="s", excerpt=b"")
store.complete([Completion(task_id=done.id, claim_token=done.claim_token, state="succeeded", eta_usec=1,
    first_attempt_usec=1, finished_usec=2, retry_count=1, execution_count=1, previous_response=200, retry_reason=None,
    attempt=attempt, queue="default", url="/")])
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 9
    store = TaskStore(path)
    try:
        assert store.queries.counts() == {"default": {"ready": 2, "succeeded": 1}}
        assert [task.name for task in store.claim({LANE: 5}, 5)] == ["running", "waiting"]
    finally:
        store.close()


def test_tasks_in_flight_are_due_though_the_clock_went_back(tmp_path: Path, clock: Clock) -> None:
    """A task that was running when the server ended is due at the next start, even if the clock was set back."""
    first = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    first.add([new_task("a")])
    first.claim({LANE: 1}, NOW)
    first.close()
    clock.usec -= DAY_USEC
    second = TaskStore(tmp_path / "tasks.sqlite", clock=clock)
    assert [task.name for task in second.claim({LANE: 1}, clock.usec)] == ["a"]
    second.close()


def test_a_second_server_fails_at_once(store: TaskStore, tmp_path: Path) -> None:
    """Opening an open store raises an error within a second that names the first server's process ID."""
    began = time.monotonic()
    with pytest.raises(ServerError, match=f"process {os.getpid()}"):
        TaskStore(tmp_path / "tasks.sqlite")
    assert time.monotonic() - began < 1
    assert store.add([new_task()])[0].outcome == "added"


def test_a_closed_store_can_be_opened_again_and_refuses_work(tmp_path: Path) -> None:
    """Closing releases the file. A call on the closed store is an error; closing it twice is not."""
    first = TaskStore(tmp_path / "tasks.sqlite")
    first.close()
    first.close()
    with pytest.raises(ServerError, match="closed"):
        first.add([new_task()])
    TaskStore(tmp_path / "tasks.sqlite").close()


def test_the_file_is_its_owners(store: TaskStore, tmp_path: Path) -> None:
    """Only the owner can read the store's files."""
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file


def _make_newer(path: Path) -> None:
    TaskStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def _make_garbage(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)


@pytest.mark.parametrize(("make", "message"), [(_make_newer, "schema version 99"), (_make_garbage, "can't be used")])
def test_a_file_that_is_not_ours_is_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    """A file of a newer version and a file that is not a database raise an error and stay unlocked."""
    path = tmp_path / "tasks.sqlite"
    make(path)
    for _ in range(2):
        with pytest.raises(ServerError, match=message):
            TaskStore(path)

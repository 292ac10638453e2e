"""The figures that a task store keeps of what happens."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.store.records import Lane, RetryPolicy
from deferred_middleware.server.store.statistics import spans
from deferred_middleware.server.store.statistics.spans import CountedAttempt, Period
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, completion, new_task, pull_task, run_all

MINUTE_USEC = 60_000_000
SEND = "/_cb/deferred/mail/send"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the store is."""
    return tmp_path / "tasks.sqlite"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[TaskStore]:
    """Return an empty store."""
    with contextlib.closing(TaskStore(path, clock=clock)) as store:
        yield store


def _run(store: TaskStore, state: str, *, waited_usec: int = 0, took_usec: int = 1200, queue: str = "default") -> None:
    (claimed,) = store.claim({Lane(queue, ""): 1}, 2 * NOW)
    done = completion(claimed, state, eta_usec=NOW)
    attempt = dataclasses.replace(done.attempt, duration_usec=took_usec)
    store.complete([dataclasses.replace(done, attempt=attempt, waited_usec=waited_usec)])


def _written(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM statistics WHERE seconds > 0").fetchone()[0])


@pytest.mark.parametrize("period", ["hour", "day", "week"])
def test_a_change_shows_at_once(store: TaskStore, period: Period) -> None:
    """What was enqueued and executed is in the last span of each period, before it is written."""
    store.add([new_task("a", url=SEND), new_task("b", url=SEND), new_task("c", queue="other")])
    _run(store, "succeeded", waited_usec=5_000, took_usec=80_000)
    _run(store, "failed")
    for one in (
        store.statistics.series(period)[-1],
        store.statistics.series(period, function="mail/send")[-1],
        store.statistics.series(period, queue="default")[-1],
    ):
        assert (one.executed, one.failed, one.dead) == (2, 1, 1)
    last = store.statistics.series(period)[-1]
    assert last.enqueued == 3
    assert last.took_p95 == pytest.approx(80_000, rel=0.13)
    assert last.waited_p95 == pytest.approx(5_000, rel=0.13)
    assert store.statistics.series(period, queue="other")[-1].enqueued == 1
    assert store.statistics.series(period, queue="unknown")[-1].executed == 0


@pytest.mark.parametrize(("period", "spans_", "longest"), [("hour", 61, 60), ("day", 145, 600), ("week", 169, 3600)])
def test_a_series_covers_its_period(store: TaskStore, period: Period, spans_: int, longest: int) -> None:
    """A series has a point for each span, also for those in which nothing happened."""
    series = store.statistics.series(period)
    assert len(series) == spans_
    assert {point.seconds for point in series} == {longest}
    assert series[-1].start_usec <= NOW < series[-1].start_usec + longest * 1_000_000


def test_figures_are_written_and_added_to(path: Path, clock: Clock) -> None:
    """A later server, and later minutes, add to what is stored; what is read is the same before and after a write."""
    for _ in range(3):
        with contextlib.closing(TaskStore(path, clock=clock)) as store:
            store.add([new_task()])
            _run(store, "succeeded")
            before = store.statistics.series("day"), store.statistics.functions("hour")
            store.statistics.flush()
            assert (store.statistics.series("day"), store.statistics.functions("hour")) == before
        clock.usec += MINUTE_USEC
    with contextlib.closing(TaskStore(path, clock=clock)) as store:
        assert [point.executed for point in store.statistics.series("hour")[-4:]] == [1, 1, 1, 0]
        assert sum(point.executed for point in store.statistics.series("week")) == 3


def test_figures_are_written_with_other_commits(store: TaskStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting makes no commits of its own; every few seconds, a commit also writes the counts."""
    monkeypatch.setattr(spans, "FLUSH_SECONDS", 3600.0)
    store.add([new_task("a")])
    assert _written(path) == 0
    store.add([new_task("b")])
    rows = _written(path)
    assert rows > 0
    _run(store, "succeeded")
    store.add([new_task("c")])
    assert _written(path) == rows
    assert store.statistics.series("hour")[-1].enqueued == 3
    assert store.statistics.series("hour")[-1].executed == 1


def test_a_failed_commit_loses_no_counts(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a commit fails, the next one writes the counts, once."""
    store.add([new_task("a")])
    with monkeypatch.context() as patch:
        patch.setattr(store._database.counts, "write", _fail)
        patch.setattr(spans, "FLUSH_SECONDS", 0.0)
        with pytest.raises(sqlite3.OperationalError):
            store.add([new_task("b")])
        patch.undo()
    store.statistics.flush()
    assert store.statistics.series("hour")[-1].enqueued == 1


def test_an_error_of_the_figures_stops_no_task(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the figures can't be written, the tasks are, and the figures are written later."""
    store.add([new_task("a")])
    with monkeypatch.context() as patch:
        patch.setattr(spans, "encode", _fail)
        assert store.add([new_task("b")])[0].outcome == "added"
    monkeypatch.setattr(spans, "FLUSH_SECONDS", 0.0)
    store._database.counters._next_flush = 0.0
    store.add([new_task("c")])
    assert store.statistics.series("hour")[-1].enqueued == 3


def _fail(*_args: object) -> None:
    raise sqlite3.OperationalError("no")


def test_old_spans_are_deleted(store: TaskStore, path: Path, clock: Clock) -> None:
    """The table does not grow with time."""
    numbers = []
    for _ in range(30):
        store.add([new_task()])
        _run(store, "succeeded")
        store.statistics.flush()
        clock.usec += DAY_USEC // 2
        numbers.append(_written(path))
    assert max(numbers[20:]) <= max(numbers[:20])
    assert sum(point.executed for point in store.statistics.series("week")) == 14


def test_there_are_at_most_so_many_names(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions and queues that come after the first ones are counted together."""
    monkeypatch.setattr(spans, "MOST_FUNCTIONS", 3)
    monkeypatch.setattr(spans, "MOST_QUEUES", 3)
    store.add([new_task(queue=f"q{number}", url=f"/_cb/deferred/m/f{number}") for number in range(6)])
    for number in range(6):
        _run(store, "succeeded", queue=f"q{number}")
    store.statistics.flush()
    assert {one.name: one.executed for one in store.statistics.functions("hour")} == {
        "m/f0": 1, "m/f1": 1, "m/f2": 1, "(others)": 3,
    }  # fmt: skip
    assert len(store.statistics.queues_last_hour()) <= 4
    assert store.statistics.series("hour")[-1].executed == 6


def test_urls_with_numbers_are_one_function(store: TaskStore) -> None:
    """The app's own URLs count as one function each, whatever numbers are in them."""
    store.add([new_task(url=f"/user/{number}/mail?x={number}") for number in range(3)])
    assert [(one.name, one.enqueued) for one in store.statistics.functions("week")] == [("/user/…/mail", 3)]


def test_queues_in_the_last_hour(store: TaskStore, clock: Clock) -> None:
    """A queue has a number for each minute; what is older than an hour doesn't count."""
    store.add([new_task(), new_task(), new_task()])
    _run(store, "succeeded", took_usec=1_000_000)
    clock.usec += 70 * MINUTE_USEC
    _run(store, "succeeded", waited_usec=3000, took_usec=50_000)
    clock.usec += 2 * MINUTE_USEC
    _run(store, "ready", waited_usec=3000, took_usec=50_000)
    figures = store.statistics.queues_last_hour()["default"]
    assert len(figures.executed_per_minute) == 60
    assert figures.executed_per_minute[-3:] == (1, 0, 1)
    assert (figures.executed, figures.failed, figures.enqueued) == (2, 1, 0)
    assert figures.took_p95 == pytest.approx(50_000, rel=0.13)
    assert figures.waited_p50 == pytest.approx(3000, rel=0.13)


def test_leases_count_as_executed(store: TaskStore) -> None:
    """A lease of a pull task counts for its queue."""
    store.add([pull_task("a"), pull_task("b")])
    store.leases.lease("pull", lease_usec=1000, limit=2, policy=RetryPolicy())
    assert store.statistics.queues_last_hour()["pull"].executed == 2


def test_tasks_of_transactions_are_counted_at_their_commit(store: TaskStore) -> None:
    """A staged task counts as enqueued when its transaction commits."""
    store.transactional.stage([new_task()], "one")
    assert store.statistics.series("hour")[-1].enqueued == 0
    store.transactional.commit({"one"})
    assert store.statistics.series("hour")[-1].enqueued == 1


def test_the_slowest_attempts_are_known(store: TaskStore, clock: Clock) -> None:
    """Of a function, the ten slowest attempts are kept, whether they are written yet or not."""
    for number in range(40):
        store.add([new_task(url=SEND)])
        _run(store, "succeeded", took_usec=number * 1000)
        if number in (10, 30):
            store.statistics.flush()
    slow = store.statistics.slowest("mail/send")
    assert [one.duration_usec for one in slow] == [number * 1000 for number in range(39, 29, -1)]
    assert all(one.is_stored for one in slow)
    store.operations.delete([slow[0].task_id])
    assert [one.is_stored for one in store.statistics.slowest("mail/send")[:2]] == [False, True]
    clock.usec += 9 * DAY_USEC
    assert store.statistics.slowest("mail/send") == []


def test_very_many_slow_functions_take_bounded_memory(store: TaskStore) -> None:
    """Before they are written, candidates for the slowest attempts are bounded too."""
    store.statistics.ended(
        [CountedAttempt("default", f"/_cb/deferred/m/f{n}", "succeeded", n, 1, NOW, 0, n + 1) for n in range(5000)]
    )
    assert len(store._database.counters.slow_candidates()) <= 2000


def test_a_void_result_is_not_counted(store: TaskStore) -> None:
    """A result whose claim no longer holds counts for nothing."""
    store.add([new_task("a")])
    (claimed,) = store.claim({LANE: 1}, NOW)
    store.operations.delete([claimed.id])
    assert store.complete([completion(claimed)]) == [False]
    assert store.statistics.series("hour")[-1].executed == 0


def test_other_queues_do_not_mix(store: TaskStore) -> None:
    """Each queue has its own figures."""
    store.add([new_task(), new_task(queue="other")])
    run_all(store, "failed", queue="other")
    figures = store.statistics.queues_last_hour()
    assert (figures["default"].failed, figures["other"].failed) == (0, 1)

"""Tests of the outbox: a committed transaction's task is sent once, after the commit or by a sweep."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from google.appengine.api import datastore
from google.appengine.ext import db, ndb, testbed

from deferred_middleware.cli.main import main
from deferred_middleware.engines import outbox
from deferred_middleware.enqueue import sweep_task
from deferred_middleware.wire import entities

PARENT = "projects/shop/locations/europe-west1/queues/default"


class CloudTasks:
    """A receiver of tasks, which records those that it accepts."""

    def __init__(self) -> None:
        self.broken = False
        self.tasks: list[tuple[str, bytes]] = []

    def send(self, parent: str, serialized: bytes) -> None:
        """Accept a task, or fail."""
        if self.broken:
            raise OSError("unreachable")
        if (parent, serialized) not in self.tasks:
            self.tasks.append((parent, serialized))


@pytest.fixture(autouse=True)
def stored(engine: testbed.Testbed) -> None:
    """A datastore."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()


@pytest.fixture
def cloud() -> CloudTasks:
    """The receiver of tasks."""
    return CloudTasks()


def in_ndb(function: Callable[[], object]) -> object:
    """Run ``function`` in a transaction of ndb."""
    return ndb.transaction(function, xg=True)


def in_db(function: Callable[[], object]) -> object:
    """Run ``function`` in a transaction of db."""
    return db.run_in_transaction_options(db.create_transaction_options(xg=True), function)


both = pytest.mark.parametrize("run", [in_ndb, in_db])


def waiting() -> int:
    """Return the number of tasks in the outbox."""
    return int(datastore.Query(outbox.KIND, namespace="").Count())


def add(cloud: CloudTasks, number: int = 0) -> None:
    """Add a task that contains its own name and a number."""
    outbox.add(parent=PARENT, make_task=lambda name: f"{name} {number}".encode(), send=cloud.send)


@both
def test_a_task_is_sent_after_the_commit(run: Any, cloud: CloudTasks) -> None:
    """A task is sent after the commit and not before, its name is derived from its key, and its entity is deleted."""

    def work() -> None:
        add(cloud)
        assert cloud.tasks == []

    run(work)

    [(parent, serialized)] = cloud.tasks
    assert parent == PARENT
    assert serialized.startswith(f"{PARENT}/tasks/tx-".encode())
    assert waiting() == 0


@both
def test_a_rolled_back_transaction_sends_nothing(run: Any, cloud: CloudTasks) -> None:
    """A rolled back transaction leaves neither an entity nor a task."""

    def work() -> None:
        add(cloud)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(work)

    assert cloud.tasks == []
    assert waiting() == 0


@both
def test_what_could_not_be_sent_is_swept(run: Any, cloud: CloudTasks, caplog: pytest.LogCaptureFixture) -> None:
    """If the task can't be sent, the commit stands, an error is logged, and a sweep sends the task once."""
    cloud.broken = True
    run(lambda: list(map(functools.partial(add, cloud), range(3))))
    assert waiting() == 3
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3

    assert outbox.sweep(cloud.send, min_age_seconds=0) == outbox.SweepReport(sent=0, failed=3)
    cloud.broken = False
    assert outbox.sweep(cloud.send, min_age_seconds=20) == outbox.SweepReport(sent=0, failed=0, younger=True)
    assert outbox.sweep(cloud.send, min_age_seconds=0) == outbox.SweepReport(sent=3, failed=0)

    assert sorted(serialized[-1:] for _, serialized in cloud.tasks) == [b"0", b"1", b"2"]
    assert waiting() == 0


@both
def test_a_sweep_ends_after_so_many_tasks(run: Any, cloud: CloudTasks) -> None:
    """What is left is the next sweep's. Tasks that can't be sent count, too."""
    cloud.broken = True
    run(lambda: list(map(functools.partial(add, cloud), range(4))))

    assert outbox.sweep(cloud.send, min_age_seconds=0, max_tasks=2) == outbox.SweepReport(
        sent=0, failed=2, younger=True
    )
    cloud.broken = False
    assert outbox.sweep(cloud.send, min_age_seconds=0, max_tasks=3) == outbox.SweepReport(
        sent=3, failed=0, younger=True
    )
    assert outbox.sweep(cloud.send, min_age_seconds=0, max_tasks=3) == outbox.SweepReport(sent=1, failed=0)


@both
def test_a_task_whose_entity_stays_is_sent_again(
    run: Any, cloud: CloudTasks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit stands and an error is logged; the queue knows the task's name by then."""

    def refuse(paths: Any) -> None:
        raise ZeroDivisionError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(entities.datastore(), "delete", refuse)
        run(lambda: add(cloud))
    assert "can't be deleted yet" in caplog.text
    assert waiting() == 1
    assert outbox.sweep(cloud.send, min_age_seconds=0) == outbox.SweepReport(sent=1, failed=0)
    assert waiting() == 0
    assert len({serialized for _, serialized in cloud.tasks}) == 1


@both
def test_a_sixth_task_is_refused(run: Any, cloud: CloudTasks) -> None:
    """The sixth task of a transaction is rejected, and its first five are sent if it commits."""
    from deferred_middleware.engines.transactions import TaskLimitReachedError

    def work() -> None:
        for number in range(5):
            add(cloud, number)
        with pytest.raises(TaskLimitReachedError):
            add(cloud, 5)

    run(work)

    assert len(cloud.tasks) == 5


def test_the_command_sends_what_waits(
    cloud: CloudTasks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``deferred-middleware sweep`` sends the tasks of committed transactions, and fails if it can't send one."""
    monkeypatch.setenv("APPENGINE_USE_CLOUDTASK_PUSH_QUEUE", "true")
    monkeypatch.setattr(
        "deferred_middleware.engines.cloud_tasks.CloudTasksEngine.send", lambda _, *task: cloud.send(*task)
    )
    monkeypatch.setattr(sweep_task, "min_age_seconds", lambda settings: 0.0)
    cloud.broken = True
    in_ndb(lambda: add(cloud))

    assert main(["sweep"]) == 1
    assert "1 transactional task could not be sent" in capsys.readouterr().err
    cloud.broken = False
    assert main(["sweep"]) == 0
    assert "1 transactional task sent to Cloud Tasks." in capsys.readouterr().out
    assert len(cloud.tasks) == 1

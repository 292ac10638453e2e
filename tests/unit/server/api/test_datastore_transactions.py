"""Tasks of datastore transactions: stored together with the entities or not at all, even if the server crashes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, datastore_errors, full_app_id
from google.appengine.api.taskqueue import taskqueue
from google.appengine.ext import db, ndb

from deferred_middleware.server.api.datastore import DATASTORE_FILE, DatastoreStub
from deferred_middleware.server.api.entity_file import EntityFile
from deferred_middleware.server.api.taskqueue import TaskQueueService
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import stored_tasks

DIRECTORY = ServiceDirectory([Service(name="default", version="local", host="127.0.0.1", port=8080, concurrency=1)])


class Letter(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """An entity."""

    _use_cache = False
    _use_memcache = False

    text = ndb.StringProperty()


class Dead(Exception):
    """Simulates the end of the process."""


class Machine:
    """A server's store and datastore in one directory, which can be restarted."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._monkeypatch = monkeypatch
        self.wakes = 0
        self._files: list[EntityFile] = []
        self.start()

    def _wake(self) -> None:
        self.wakes += 1

    def start(self) -> None:
        """Start the stubs for the datastore and the task queue."""
        stub_map = apiproxy_stub_map.APIProxyStubMap()
        self._monkeypatch.setattr(apiproxy_stub_map, "apiproxy", stub_map)
        self.store = TaskStore(self._path / "tasks.sqlite")
        self.queues = QueueRegistry()
        self.service = TaskQueueService(self.store, self._wake, directory=DIRECTORY, queues=self.queues)
        self.transactions = self.service.transactions
        self.datastore = DatastoreStub("dev~app", self._path / DATASTORE_FILE, self.service.transactions)
        self._files.append(self.datastore._file)
        stub_map.RegisterStub("taskqueue", self.service)
        stub_map.RegisterStub("datastore_v3", self.datastore)

    def restart(self) -> None:
        """Restart without closing the datastore, as after a crash."""
        self.store.close()
        self.start()

    def close(self) -> None:
        """Close the files, also those that the crashes have left open."""
        self.store.close()
        for file in self._files:
            file.close()

    def tasks(self) -> list[str]:
        """Return the names of the visible tasks."""
        return [task.name for task in stored_tasks(self.store)]

    def held(self) -> int:
        """Return the number of tasks that are held for a transaction."""
        connection = sqlite3.connect(self._path / "tasks.sqlite")
        try:
            return int(connection.execute("SELECT count(*) FROM tasks WHERE state = 'held'").fetchone()[0])
        finally:
            connection.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A server on an empty directory, with this process as its client."""
    full_app_id.put("dev~app")
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = Machine(tmp_path, monkeypatch)
        yield machine
        machine.close()


def put_with_task(text: str = "note", *, retries: int = 0) -> str:
    """Write an entity and add a task in one transaction; return the task's name."""

    def work() -> str:
        Letter(id=text, text=text).put()
        return str(taskqueue.add(url="/work", transactional=True).name)

    return str(ndb.transaction(work, retries=retries))


def letter_exists(text: str = "note") -> bool:
    """Return whether the entity exists."""
    return Letter.get_by_id(text) is not None


def test_a_committed_task_is_there_and_not_before(machine: Machine) -> None:
    """A task becomes visible when its transaction commits, under the name that the client received."""

    def work() -> str:
        task = taskqueue.add(url="/work", transactional=True)
        assert machine.store.queries.counts() == {}
        return str(task.name)

    name = db.run_in_transaction(work)
    assert machine.tasks() == [name]
    assert machine.store.queries.counts() == {"default": {"ready": 1}}
    assert machine.held() == 0
    assert machine.wakes == 1


def test_a_rolled_back_task_never_was(machine: Machine) -> None:
    """A transaction that fails enqueues nothing, in db and in ndb."""

    def work() -> None:
        taskqueue.add(url="/work", transactional=True)
        raise db.Rollback

    db.run_in_transaction(work)

    def fail() -> None:
        taskqueue.add(url="/work", transactional=True)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ndb.transaction(fail)
    assert machine.tasks() == []
    assert machine.held() == 0


def test_a_retried_transaction_enqueues_once(machine: Machine) -> None:
    """If a transaction is retried after a conflict, only the last try's tasks are enqueued."""
    key = Letter(id="shared", text="0").put()
    tries = []

    def work() -> None:
        note = key.get()
        tries.append(taskqueue.add(url="/work", transactional=True).name)
        if len(tries) < 3:
            # A conflicting write between this transaction's read and its commit.
            ndb.non_transactional(Letter(id="shared", text=str(len(tries))).put)()
        note.text += "!"
        note.put()

    ndb.transaction(work, retries=5)
    assert len(tries) == 3
    assert machine.tasks() == [tries[-1]]
    assert machine.held() == 0


def test_five_unnamed_tasks_go_with_a_transaction(machine: Machine) -> None:
    """A transaction takes up to 5 tasks, all without names; a transaction with a refused task enqueues nothing."""

    def work(number: int) -> None:
        for _ in range(number):
            taskqueue.add(url="/work", transactional=True)

    ndb.transaction(lambda: work(5))
    assert len(machine.tasks()) == 5
    with pytest.raises(taskqueue.DatastoreError, match="maximum allowed 5"):
        ndb.transaction(lambda: work(6))
    with pytest.raises(taskqueue.InvalidTaskNameError):
        ndb.transaction(lambda: taskqueue.add(url="/work", name="mine", transactional=True))
    assert len(machine.tasks()) == 5


def test_a_transaction_of_tasks_alone_commits(machine: Machine) -> None:
    """A transaction that adds tasks and writes no entity commits, and its tasks survive a restart."""
    ndb.transaction(lambda: taskqueue.add(url="/work", transactional=True))
    machine.restart()
    assert len(machine.tasks()) == 1


def test_an_error_of_the_store_fails_the_commit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the store can't hold the tasks, the transaction doesn't commit and the client gets the error."""

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(machine.store.transactional, "stage", fail)
        with pytest.raises(Exception, match="disk is full"):
            put_with_task()
    assert not letter_exists()
    assert machine.tasks() == []


def test_a_queue_that_went_away_fails_the_commit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a task's queue is removed before the commit, the transaction fails."""

    def work() -> None:
        Letter(id="note", text="note").put()
        taskqueue.add(url="/work", transactional=True)
        monkeypatch.setattr(machine.queues, "_queues", {})

    with pytest.raises(Exception, match="no queue 'default'"):
        ndb.transaction(work)
    assert not letter_exists()
    assert machine.tasks() == []


# Where the server dies: the object, its method, whether the method runs before that, and whether the entity and the
# task exist after the restart.
ENDS = [
    ("transactions", "stage", False, False),
    ("transactions", "stage", True, False),
    ("datastore", "_commit_in_memory", True, False),
    ("datastore", "_write_file", False, False),
    ("datastore", "_write_file", True, True),
    ("datastore", "_commit_tasks", False, True),
    ("datastore", "_commit_tasks", True, True),
]


@pytest.mark.parametrize(("part", "method", "done", "there"), ENDS)
def test_entity_and_task_share_their_fate(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, part: str, method: str, done: bool, there: bool
) -> None:
    """If the server dies during a commit, both the entity and the task exist after the restart, or neither does."""
    put_with_task("before")
    target = getattr(machine, part)
    original = getattr(target, method)

    def end(*args: Any) -> None:
        if done:
            original(*args)
        # A dead process doesn't clean up.
        monkeypatch.setattr(machine.transactions, "discard", lambda transaction: None)
        raise Dead

    monkeypatch.setattr(target, method, end)
    with pytest.raises(Dead):
        put_with_task()
    machine.restart()
    assert letter_exists("before")
    assert letter_exists() is there
    assert len(machine.tasks()) == 1 + there
    assert machine.held() == 0
    put_with_task("after")
    assert letter_exists("after")


def test_a_write_that_failed_is_made_up_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If writing a commit's file fails, the client gets an error; the next write saves both the entity and the task."""

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(machine.datastore, "_write_file", fail)
        with pytest.raises(datastore_errors.InternalError, match="no space"):
            put_with_task("first")
    assert machine.tasks() == []
    assert machine.held() == 1
    put_with_task("second")
    assert len(machine.tasks()) == 2
    assert machine.held() == 0
    machine.restart()
    assert letter_exists("first")
    assert len(machine.tasks()) == 2


def test_letting_go_is_tried_again(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a committed transaction's tasks can't be released, the release is retried and the client gets no error."""
    monkeypatch.setitem(DatastoreStub.MakeSyncCall.__globals__, "_COMMIT_RETRY_SECONDS", 0.01)
    commit = machine.transactions.commit
    calls = []
    done = threading.Event()

    def fail_once(transactions: Any) -> None:
        calls.append(transactions)
        if len(calls) == 1:
            raise sqlite3.OperationalError("database or disk is full")
        commit(transactions)
        done.set()

    monkeypatch.setattr(machine.transactions, "commit", fail_once)
    put_with_task()
    assert done.wait(30)
    assert len(machine.tasks()) == 1


def test_a_held_task_is_nobodys(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A held task is in the list for people, but can't be taken, deleted or purged, and its name is taken."""
    seen: dict[str, Any] = {}
    names: list[str] = []
    stage, write = machine.transactions.stage, machine.datastore._write_file

    def remember(adds: Any, transaction: str) -> None:
        names.extend(add.task_name.decode() for add in adds)
        stage(adds, transaction)

    def look(*args: Any) -> None:
        seen["get"] = machine.store.queries.get("default", names[0])
        seen["found"] = [task.state for task in machine.store.queries.find().tasks]
        seen["ready"] = machine.store.queries.find(state="ready").tasks
        seen["delete"] = machine.store.operations.delete_by_name("default", names)
        seen["purge"] = machine.store.operations.purge("default")
        with pytest.raises(taskqueue.TaskAlreadyExistsError):
            taskqueue.add(url="/work", name=names[0])
        write(*args)

    monkeypatch.setattr(machine.transactions, "stage", remember)
    monkeypatch.setattr(machine.datastore, "_write_file", look)
    name = put_with_task()
    assert seen == {"get": None, "found": ["held"], "ready": (), "delete": [None], "purge": 0}
    assert machine.tasks() == [name]

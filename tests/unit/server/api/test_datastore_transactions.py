"""Tasks of datastore transactions: with their entities or not at all, wherever a server ends."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, full_app_id
from google.appengine.api.taskqueue import taskqueue
from google.appengine.ext import db, ndb

from deferred_middleware.server.api.datastore import DATASTORE_FILE, DatastoreStub
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
    """Stands for the end of the process."""


class Machine:
    """A server's store and datastore in one directory, which can be started anew."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = path
        self._monkeypatch = monkeypatch
        self.wakes = 0
        self.start()

    def _wake(self) -> None:
        self.wakes += 1

    def start(self) -> None:
        """Start what serves the datastore and the task queue."""
        stub_map = apiproxy_stub_map.APIProxyStubMap()
        self._monkeypatch.setattr(apiproxy_stub_map, "apiproxy", stub_map)
        self.store = TaskStore(self._path / "tasks.sqlite")
        self.queues = QueueRegistry()
        self.service = TaskQueueService(self.store, self._wake, directory=DIRECTORY, queues=self.queues)
        self.transactions = self.service.transactions
        self.datastore = DatastoreStub("dev~app", self._path / DATASTORE_FILE, self.service.transactions)
        stub_map.RegisterStub("taskqueue", self.service)
        stub_map.RegisterStub("datastore_v3", self.datastore)

    def restart(self) -> None:
        """End without an orderly end of the datastore, and start again."""
        self.store.close()
        self.start()

    def tasks(self) -> list[str]:
        """Return the names of the tasks that anybody can see."""
        return [task.name for task in stored_tasks(self.store)]

    def held(self) -> int:
        """Return how many tasks are held."""
        connection = sqlite3.connect(self._path / "tasks.sqlite")
        try:
            return int(connection.execute("SELECT count(*) FROM tasks WHERE state = 'held'").fetchone()[0])
        finally:
            connection.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A server on an empty directory, and this process as its client."""
    full_app_id.put("dev~app")
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = Machine(tmp_path, monkeypatch)
        yield machine
        machine.store.close()


def put_with_task(text: str = "note", *, retries: int = 0) -> str:
    """Write an entity and add a task in one transaction; return the task's name."""

    def work() -> str:
        Letter(id=text, text=text).put()
        return str(taskqueue.add(url="/work", transactional=True).name)

    return str(ndb.transaction(work, retries=retries))


def letter_exists(text: str = "note") -> bool:
    """Tell whether the entity is there."""
    return Letter.get_by_id(text) is not None


def test_a_committed_task_is_there_and_not_before(machine: Machine) -> None:
    """Nobody sees the task until the transaction commits; then it has the name that the client was told."""

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
    """What a transaction added in the tries that met with a conflict is dropped."""
    key = Letter(id="shared", text="0").put()
    tries = []

    def work() -> None:
        note = key.get()
        tries.append(taskqueue.add(url="/work", transactional=True).name)
        if len(tries) < 3:
            # Somebody else changes it between the reading and the commit.
            ndb.non_transactional(Letter(id="shared", text=str(len(tries))).put)()
        note.text += "!"
        note.put()

    ndb.transaction(work, retries=5)
    assert len(tries) == 3
    assert machine.tasks() == [tries[-1]]
    assert machine.held() == 0


def test_five_unnamed_tasks_go_with_a_transaction(machine: Machine) -> None:
    """A sixth task is refused, as on the platform, and a name too; what was refused is not there afterwards."""

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
    """Tasks need no entity to go with, and are there after a restart."""
    ndb.transaction(lambda: taskqueue.add(url="/work", transactional=True))
    machine.restart()
    assert len(machine.tasks()) == 1


def test_an_error_of_the_store_fails_the_commit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the tasks can't be stored the transaction is not committed, and the client hears of it."""

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(machine.store.transactional, "stage", fail)
        with pytest.raises(Exception, match="disk is full"):
            put_with_task()
    assert not letter_exists()
    assert machine.tasks() == []


def test_a_queue_that_went_away_fails_the_commit(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose queue was removed since it was added keeps its transaction from being committed."""

    def work() -> None:
        Letter(id="note", text="note").put()
        taskqueue.add(url="/work", transactional=True)
        monkeypatch.setattr(machine.queues, "_queues", {})

    with pytest.raises(Exception, match="no queue 'default'"):
        ndb.transaction(work)
    assert not letter_exists()
    assert machine.tasks() == []


# Where the server ends: the object, its method, whether that is done before the end, and whether entity and task are
# there afterwards.
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
    """Whichever step of a commit a server doesn't live to see, the next one has the entity and the task, or neither."""
    put_with_task("before")
    target = getattr(machine, part)
    original = getattr(target, method)

    def end(*args: Any) -> None:
        if done:
            original(*args)
        # The process is gone: nothing is tidied up either.
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
    """A commit whose file can't be written is an error; entity and task come with the next write, together."""

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(machine.datastore, "_write_file", fail)
        with pytest.raises(OSError, match="no space"):
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
    """A committed transaction whose tasks can't be let go at once has them a little later, without an error."""
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


def test_a_file_of_the_first_version_is_read(machine: Machine, tmp_path: Path) -> None:
    """A datastore's file that knows of no transactions has its entities all the same."""
    Letter(id="old", text="old").put()
    file = tmp_path / DATASTORE_FILE
    data = file.read_bytes()
    line = b"deferred_middleware datastore 2\n"
    assert data.startswith(line)
    file.write_bytes(line.replace(b"2", b"1") + data[len(line) : len(line) + 16] + data[len(line) + 20 :])
    machine.restart()
    assert letter_exists("old")


def test_a_held_task_is_nobodys(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose transaction is being committed is not found, deleted or purged, and its name is taken."""
    seen: dict[str, Any] = {}
    names: list[str] = []
    stage, write = machine.transactions.stage, machine.datastore._write_file

    def remember(adds: Any, transaction: str) -> None:
        names.extend(add.task_name.decode() for add in adds)
        stage(adds, transaction)

    def look(*args: Any) -> None:
        seen["get"] = machine.store.queries.get("default", names[0])
        seen["found"] = machine.store.queries.find().tasks
        seen["delete"] = machine.store.operations.delete_by_name("default", names)
        seen["purge"] = machine.store.operations.purge("default")
        with pytest.raises(taskqueue.TaskAlreadyExistsError):
            taskqueue.add(url="/work", name=names[0])
        write(*args)

    monkeypatch.setattr(machine.transactions, "stage", remember)
    monkeypatch.setattr(machine.datastore, "_write_file", look)
    name = put_with_task()
    assert seen == {"get": None, "found": (), "delete": [None], "purge": 0}
    assert machine.tasks() == [name]

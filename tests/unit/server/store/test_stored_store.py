"""Tests that the store reads the files that older versions of the local server wrote.

Earlier commits wrote the files ``data/tasks-*.sql`` (``python -m tests.support.stored_store``), one for each version of
the schema. Don't regenerate them: they represent users' existing data directories. Each test also runs on a store that
the current version has just written, to show that all have the same content. If you change the schema, write the file
of the new version when its commit is done.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from deferred_middleware.calls.payload import loads
from deferred_middleware.server.store.database import SCHEMA_VERSION
from deferred_middleware.server.store.records import PULL, Lane
from deferred_middleware.server.store.store import TaskStore
from tests.support import sample
from tests.support.stored_store import HEADERS, MINUTE_USEC, RETRY, fill
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, stored_tasks

DATA = Path(__file__).parent / "data"
OLDER = ("0.1.0-dev", *(f"schema-{number}" for number in range(3, SCHEMA_VERSION + 1)))


def test_each_version_of_the_schema_has_a_file() -> None:
    """No version of the schema is without a file that the tests open."""
    versions = {
        int(version)
        for path in DATA.glob("*.sql")
        for version in re.findall(r"^PRAGMA user_version = (\d+);", path.read_text(), re.MULTILINE)
    }
    assert versions == set(range(1, SCHEMA_VERSION + 1))


@pytest.fixture(params=[*OLDER, "now"])
def stored(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[TaskStore]:
    """Open a store that an older version or the current one wrote."""
    path = tmp_path / "stored.sqlite"
    if request.param == "now":
        written = TaskStore(path, clock=clock)
        fill(written)
        written.close()
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript((DATA / f"tasks-{request.param}.sql").read_text())
    store = TaskStore(path, clock=clock)
    yield store
    store.close()


def test_every_task_is_there_in_its_state(stored: TaskStore) -> None:
    """A task that was running is due again, and the held tasks of a transaction are not visible."""
    found = {task.name: (task.queue, task.state, task.eta_usec, task.retry_count) for task in stored_tasks(stored)}
    ((unnamed, waits),) = ((name, facts) for name, facts in found.items() if name.isdecimal())

    assert waits == ("default", "ready", NOW + 1, 0)
    assert {name: facts for name, facts in found.items() if name != unnamed} == {
        "finished": ("default", "succeeded", 0, 1),
        "dead": ("default", "failed", 0, 1),
        "dead, tried again": ("default", "ready", NOW + MINUTE_USEC, 1),
        "running": ("default", "ready", NOW, 0),
        "waiting": ("default", "ready", NOW, 0),
        "waiting for a service": ("default", "ready", NOW, 0),
        "scheduled": ("default", "ready", NOW + DAY_USEC, 0),
        "wanted now": ("default", "ready", NOW, 0),
        "in a paused queue": ("other", "ready", NOW, 0),
        "pulled": ("pull", "ready", NOW, 0),
        "leased": ("pull", "ready", NOW + MINUTE_USEC, 1),
    }
    assert stored.queries.counts() == {
        "default": {"ready": 7, "succeeded": 1, "failed": 1},
        "other": {"ready": 1},
        "pull": {"ready": 2},
    }


def test_what_a_task_was_added_with_is_there(stored: TaskStore) -> None:
    """A task keeps its URL, headers, body, retry options, deadline, target, method and tag."""
    waiting, elsewhere = (
        stored.queries.get("default", "waiting"),
        stored.queries.get("default", "waiting for a service"),
    )
    pulled = stored.queries.get("pull", "pulled")
    assert waiting is not None
    assert elsewhere is not None
    assert pulled is not None

    assert (waiting.method, waiting.url, waiting.target) == ("POST", "/_cb/deferred/tests.support.sample/note", "")
    assert (waiting.headers, waiting.retry, waiting.dispatch_deadline_usec) == (HEADERS, RETRY, 90_000_000)
    assert (elsewhere.method, elsewhere.target, elsewhere.retry) == ("PUT", "background", None)
    assert (pulled.method, pulled.tag, pulled.url, pulled.body) == (PULL, "a tag", "", b"pulled")
    names = [task.name for task in stored_tasks(stored) if task.method != PULL and not task.name.isdecimal()]
    for name, queue in ((name, "other" if name == "in a paused queue" else "default") for name in names):
        task = stored.queries.get(queue, name)
        assert task is not None
        loads(task.body).run()
    assert sample.ran == [((name,), {}) for name in names]


def test_attempts_and_blocked_names_are_there(stored: TaskStore) -> None:
    """A retried dead letter keeps its earlier attempts, and a used name stays blocked."""
    again = stored.queries.get("default", "dead, tried again")
    assert again is not None

    kept = [(attempt.number, attempt.status, attempt.excerpt) for attempt in stored.queries.attempts(again.id)]
    assert kept == [(1, 500, b"oops"), (2, 500, b"oops")]
    assert (again.previous_response, again.retry_reason, again.first_attempt_usec) == (500, "App Error", NOW)
    blocked = ("finished", "dead", "deleted", "waiting", "never used")
    assert [stored.queries.is_blocked("default", name) for name in blocked] == [True, True, True, False, False]
    assert stored.operations.paused() == {"other"}


def test_what_is_due_is_claimed(stored: TaskStore) -> None:
    """A forced task is claimed first, and due tasks in their order."""
    assert [task.name for task in stored.claim_forced(10)] == ["wanted now"]
    assert [task.name for task in stored.claim({LANE: 10}, NOW)] == ["running", "waiting"]
    assert [task.name for task in stored.claim({Lane("default", "background"): 10}, NOW)] == ["waiting for a service"]
    later = stored.claim({LANE: 10}, NOW + DAY_USEC)
    assert later[0].url == "/without-a-name"
    assert [task.name for task in later[1:]] == ["dead, tried again", "scheduled"]


def test_a_lease_holds_until_its_end(stored: TaskStore, clock: Clock) -> None:
    """A leased task is leased again only after its lease ends."""
    leased = []
    for _ in range(2):
        found = stored.leases.lease("pull", lease_usec=MINUTE_USEC, limit=9, policy=RETRY, group_by_tag=False, tag=None)
        leased.append([task.name for task in found])
        clock.usec += MINUTE_USEC

    assert leased == [["pulled"], ["pulled", "leased"]]


def test_what_waited_for_a_commit_is_settled(stored: TaskStore) -> None:
    """If the datastore knows a transaction, its tasks are enqueued; other held tasks are dropped."""
    stored.transactional.recover({"the transaction that was committed"})

    enqueued = stored.queries.get("default", "of a commit")
    assert enqueued is not None
    assert enqueued.state == "ready"
    assert stored.queries.get("default", "of no commit") is None

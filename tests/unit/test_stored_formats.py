"""Tests that this version reads what an earlier one left in logs and in the datastore, and in which form it writes.

An earlier commit wrote ``data/formats-0.1.0-dev.json`` (``python -m tests.support.stored_formats``). Don't write it
anew: it represents the logs and entities of users.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api import datastore
from google.appengine.datastore import entity_bytes_pb2
from google.appengine.ext import testbed

from deferred_middleware import DeferredMiddleware
from deferred_middleware.config import process
from deferred_middleware.config.process import Deployment, install_settings
from deferred_middleware.engines import outbox
from deferred_middleware.execution.dead_letters import MARK, replay
from deferred_middleware.testing import capture_tasks
from tests.support import sample
from tests.support.stored_formats import MENDED, PARENT, SETTINGS, dead_letter, outbox_entity
from tests.support.watching import other_pages

STORED: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "formats-0.1.0-dev.json").read_text())


@pytest.fixture
def entities(engine: testbed.Testbed) -> None:
    """Provide a datastore."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()


def parts_of(line: str) -> dict[str, Any]:
    """Return the JSON of a dead letter's line."""
    found: dict[str, Any] = json.loads(line[line.index(MARK) + len(MARK) :])
    return found


def entity_of(text: str) -> Any:
    """Return an entity from the SDK's encoding, as one of this process's app."""
    proto = entity_bytes_pb2.EntityProto.FromString(base64.b64decode(text))
    # The ID of the app depends on the variables that other tests have left.
    proto.key.app = datastore.Key.from_path("any", 1).app()
    return datastore.Entity.FromPb(proto)


def test_a_dead_letter_in_an_older_log_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line's signature holds, and the task has its queue, its argument, its header and its limit."""
    # The app of the line had no ID.
    monkeypatch.setattr(process, "_deployment", Deployment())
    monkeypatch.delenv("APPLICATION_ID", raising=False)
    install_settings(SETTINGS)
    sample.ran.append(MENDED)
    with capture_tasks(DeferredMiddleware(other_pages)) as tasks:
        replay(STORED["dead letter"])

        (task,) = tasks.pending
        assert (task.queue, task.headers["X-Tenant"]) == ("mail", "a")
        assert task.headers["X-Deferred-Max-Attempts"] == "9"
        assert tasks.run().ok
    assert sample.ran == [MENDED, "once more"]


def test_a_dead_letter_is_written_in_the_same_form() -> None:
    """A line of this version has the same parts as the older one, so the older version can read it."""
    install_settings(SETTINGS)

    now, older = parts_of(dead_letter()), parts_of(STORED["dead letter"])

    assert {name: type(value) for name, value in now.items()} == {name: type(value) for name, value in older.items()}
    assert set(now["headers"]) == set(older["headers"])


def test_a_task_in_an_older_outbox_is_sent(entities: None) -> None:
    """A sweep sends the task of the stored entity to its queue, under its name, and deletes the entity."""
    datastore.Put(entity_of(STORED["outbox"]))
    sent: list[tuple[str, bytes]] = []

    report = outbox.sweep(lambda parent, serialized: sent.append((parent, serialized)), min_age_seconds=20)

    name = entity_of(STORED["outbox"]).key().name()
    assert report == outbox.SweepReport(sent=1, failed=0)
    assert sent == [(PARENT, f"a task named {PARENT}/tasks/tx-{name}".encode())]
    assert datastore.Query(outbox.KIND, namespace="").Count() == 0


def test_the_outbox_is_written_in_the_same_form(entities: None) -> None:
    """An entity of this version has the properties and types of the stored one."""
    now, older = entity_of(outbox_entity()), entity_of(STORED["outbox"])

    assert {name: type(value) for name, value in now.items()} == {name: type(value) for name, value in older.items()}
    assert (now.key().kind(), now.key().parent()) == (older.key().kind(), older.key().parent())

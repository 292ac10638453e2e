"""Tests of our entities in google-cloud-ndb's datastore: the same as in the SDK's, in transactions and outside."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest
from google.appengine.ext import testbed
from google.cloud import ndb

from deferred_middleware.wire import cloud_entities, entities, sdk_entities
from deferred_middleware.wire.entities import StoredEntity
from tests.support.cloud_datastore import CloudDatastore

KIND = "_DeferredPayload"
NOON = datetime.datetime(2026, 1, 1, 12)
CHUNKS = [
    StoredEntity(path=(KIND, "root", KIND, number), properties={"expires": NOON, "data": bytes([0, 255]) * number})
    for number in (1, 2)
]
RECEIPT = StoredEntity(path=(KIND, "root"), properties={"expires": NOON, "retry_count": 3})


class Shop(ndb.Model):  # type: ignore[misc] # it has no types
    """An entity of the app."""

    count = ndb.IntegerProperty(default=0)


@pytest.fixture(scope="module")
def server() -> Iterator[CloudDatastore]:
    """Run a datastore."""
    with CloudDatastore() as server:
        yield server


@pytest.fixture(params=["cloud", "cloud in a context", "sdk"])
def datastore(
    request: pytest.FixtureRequest, server: CloudDatastore, monkeypatch: pytest.MonkeyPatch, engine: testbed.Testbed
) -> Iterator[Any]:
    """Provide each datastore."""
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", server.address)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "shop")
    server.clear()
    monkeypatch.setattr(cloud_entities, "_client", None)
    engine.init_datastore_v3_stub()
    if request.param == "sdk":
        yield sdk_entities
    elif request.param == "cloud":
        yield cloud_entities
    else:
        with ndb.Client().context(namespace="tenant"):
            yield cloud_entities


def test_what_is_written_is_read(datastore: Any) -> None:
    """Entities come back as they were written, in the order of the keys; others are None."""
    datastore.put([*CHUNKS, RECEIPT])

    missing: entities.Path = (KIND, "root", KIND, 3)
    assert datastore.get([RECEIPT.path, *(chunk.path for chunk in CHUNKS), missing]) == [RECEIPT, *CHUNKS, None]

    datastore.delete([CHUNKS[0].path, missing])
    assert datastore.get([CHUNKS[0].path, CHUNKS[1].path]) == [None, CHUNKS[1]]


def test_old_ones_are_found(datastore: Any) -> None:
    """A query finds the entities before a time, the oldest first, up to a limit."""
    made = [
        StoredEntity(path=(KIND, name), properties={"expires": NOON + datetime.timedelta(hours=hours)})
        for name, hours in (("c", 3), ("a", 1), ("b", 2))
    ]
    datastore.put(made)

    def found(hours: int, limit: int = 10, **more: Any) -> list[str]:
        time = NOON + datetime.timedelta(hours=hours)
        return [each.path[-1] for each in datastore.older_than(KIND, "expires", time, limit=limit, **more)]

    assert found(3) == ["a", "b"]
    assert found(4, keys_only=True) == ["a", "b", "c"]
    assert found(4, limit=2) == ["a", "b"]
    assert found(0) == []
    assert datastore.older_than(KIND, "expires", NOON + datetime.timedelta(hours=2), limit=1)[0] == made[1]


@pytest.fixture
def client(server: CloudDatastore, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a client of the datastore."""
    monkeypatch.setenv("DATASTORE_EMULATOR_HOST", server.address)
    server.clear()
    return ndb.Client(project="shop")


@pytest.mark.parametrize("fails", [False, True])
def test_a_transaction_writes_all_or_nothing(client: Any, server: CloudDatastore, fails: bool) -> None:
    """In a transaction, our entities and the app's are written together, or none of them."""

    def work() -> None:
        Shop(id="shop").put()
        assert entities.in_cloud_transaction()
        cloud_entities.put(CHUNKS, in_transaction=True)
        cloud_entities.delete([CHUNKS[0].path], in_transaction=True)
        # Others don't see it before the commit.
        assert cloud_entities.get([CHUNKS[1].path]) == [None]
        if fails:
            raise ZeroDivisionError

    with client.context():
        assert not entities.in_cloud_transaction()
        if fails:
            with pytest.raises(ZeroDivisionError):
                ndb.transaction(work)
        else:
            ndb.transaction(work)

    assert server.names("Shop") == ([] if fails else ["shop"])
    assert server.names(KIND) == ([] if fails else [2])


def test_the_apps_context_is_left_alone(client: Any, server: CloudDatastore) -> None:
    """Our calls change neither the context's cache nor its namespace, and need no context afterwards."""
    with client.context(namespace="tenant") as context:
        shop = Shop(id="mine").put()
        cloud_entities.put(CHUNKS)
        assert entities.cloud_context() is context
        assert shop.namespace() == "tenant"
        assert ndb.Key(Shop, "mine").get() is not None
        assert all(key.kind() == "Shop" for key in context.cache)

    assert cloud_entities.get([CHUNKS[0].path]) == [CHUNKS[0]]

"""The private names of the SDK that the local server relies on; these tests fail if a new SDK changes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.appengine.api import datastore_file_stub, full_app_id
from google.appengine.datastore import datastore_pb
from google.appengine.datastore import entity_bytes_pb2 as entity_pb

from deferred_middleware.server.api.sdk_datastore import SnapshotDatastoreStub


@pytest.fixture
def _application() -> Iterator[None]:
    full_app_id.put("dev~app")
    yield
    full_app_id.clear()


pytestmark = pytest.mark.usefixtures("_application")


def put(stub: SnapshotDatastoreStub, name: str) -> None:
    """Put an entity."""
    request = datastore_pb.PutRequest()
    entity = request.entity.add()
    entity.key.app = "dev~app"
    entity.key.path.element.add(type="Note", name=name)
    entity.entity_group.CopyFrom(entity.key.path)
    stub.MakeSyncCall("datastore_v3", "Put", request, datastore_pb.PutResponse())


def exists(stub: SnapshotDatastoreStub, name: str) -> bool:
    """Return whether the stub has the entity."""
    request, response = datastore_pb.GetRequest(), datastore_pb.GetResponse()
    key = request.key.add(app="dev~app")
    key.path.element.add(type="Note", name=name)
    stub.MakeSyncCall("datastore_v3", "Get", request, response)
    return bool(response.entity[0].HasField("entity"))


def test_the_overridden_methods_are_the_sdks() -> None:
    """The SDK's stub has both overridden methods, with the same parameters."""
    stub = datastore_file_stub.DatastoreFileStub
    write, read = stub._DatastoreFileStub__WritePickled, stub._DatastoreFileStub__ReadPickled

    assert list(inspect.signature(write).parameters) == ["self", "obj", "filename"]
    assert list(inspect.signature(read).parameters) == ["self", "filename"]


def test_a_snapshot_has_the_entities_and_the_commit_time(tmp_path: Path) -> None:
    """A snapshot has the encoded entities and then the commit time; the SDK writes no file."""
    stub = SnapshotDatastoreStub("dev~app", tmp_path / "file", list)
    put(stub, "one")
    put(stub, "two")

    *entities, commit_time = stub.take_snapshot()

    names = [entity_pb.EntityProto.FromString(entity).key.path.element[0].name for entity in entities]
    assert sorted(names) == ["one", "two"]
    assert isinstance(commit_time, int)
    assert list(tmp_path.iterdir()) == []


def test_a_stub_starts_from_a_snapshot(tmp_path: Path) -> None:
    """A stub that loads a snapshot has its entities and continues from its commit time."""
    first = SnapshotDatastoreStub("dev~app", tmp_path / "file", list)
    put(first, "kept")
    snapshot = list(first.take_snapshot())

    second = SnapshotDatastoreStub("dev~app", tmp_path / "file", lambda: list(snapshot))

    assert exists(second, "kept")
    assert not exists(second, "other")
    assert list(second.take_snapshot()) == snapshot

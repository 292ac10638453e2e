"""The private names of the SDK that the local server relies on; these tests fail if a new SDK changes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api import api_base_pb2, datastore_file_stub, full_app_id
from google.appengine.datastore import datastore_pb, datastore_stub_util
from google.appengine.datastore import entity_bytes_pb2 as entity_pb
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.server.api.sdk_datastore import RecordingDatastoreStub, encoded_key


@pytest.fixture
def _application() -> Iterator[None]:
    full_app_id.put("dev~app")
    yield
    full_app_id.clear()


pytestmark = pytest.mark.usefixtures("_application")


def put(stub: RecordingDatastoreStub, name: str) -> None:
    """Put an entity."""
    request = datastore_pb.PutRequest()
    entity = request.entity.add()
    entity.key.app = "dev~app"
    entity.key.path.element.add(type="Note", name=name)
    entity.entity_group.CopyFrom(entity.key.path)
    stub.MakeSyncCall("datastore_v3", "Put", request, datastore_pb.PutResponse())


def exists(stub: RecordingDatastoreStub, name: str) -> bool:
    """Return whether the stub has the entity."""
    request, response = datastore_pb.GetRequest(), datastore_pb.GetResponse()
    key = request.key.add(app="dev~app")
    key.path.element.add(type="Note", name=name)
    stub.MakeSyncCall("datastore_v3", "Get", request, response)
    return bool(response.entity[0].HasField("entity"))


def delete(stub: RecordingDatastoreStub, name: str) -> None:
    """Delete an entity."""
    request = datastore_pb.DeleteRequest()
    request.key.add(app="dev~app").path.element.add(type="Note", name=name)
    stub.MakeSyncCall("datastore_v3", "Delete", request, datastore_pb.DeleteResponse())


def names(changes: dict[bytes, bytes | None]) -> dict[str, bool]:
    """Return for the name of each entity that has changed whether it was put."""
    return {
        entity_pb.Reference.FromString(key).path.element[0].name: entity is not None for key, entity in changes.items()
    }


def test_the_overridden_methods_are_the_sdks() -> None:
    """The SDK's stub has the overridden methods, with the same parameters."""
    stub = datastore_file_stub.DatastoreFileStub

    def parameters(method: Any) -> list[str]:
        return list(inspect.signature(method).parameters)

    assert parameters(stub._DatastoreFileStub__ReadPickled) == ["self", "filename"]
    assert parameters(stub._StoreRecord) == ["self", "record", "insert"]
    assert parameters(stub._Delete) == ["self", "key"]
    assert parameters(stub._GetReadTimestamp) == ["self"]
    assert parameters(stub._RemoveTxn) == ["self", "txn"]
    assert parameters(datastore_stub_util._ToStorageEntity) == ["record"]


def test_changes_are_recorded(tmp_path: Path) -> None:
    """What was put and deleted since the last call is returned, by its key; the SDK writes no file."""
    stub = RecordingDatastoreStub("dev~app", tmp_path / "file", list)
    put(stub, "one")
    put(stub, "two")
    assert names(stub.take_changes()) == {"one": True, "two": True}
    assert stub.take_changes() == {}

    put(stub, "three")
    delete(stub, "one")
    put(stub, "two")
    delete(stub, "two")
    assert names(stub.take_changes()) == {"three": True, "one": False, "two": False}
    assert list(tmp_path.iterdir()) == []


def test_changes_that_are_put_back_give_way_to_later_ones(tmp_path: Path) -> None:
    """Changes that could not be written are returned again, unless the same entity has changed again."""
    stub = RecordingDatastoreStub("dev~app", tmp_path / "file", list)
    put(stub, "one")
    put(stub, "two")
    changes = stub.take_changes()
    delete(stub, "one")
    stub.put_back_changes(changes)

    assert names(stub.take_changes()) == {"one": False, "two": True}


def test_a_stub_starts_from_what_was_recorded(tmp_path: Path) -> None:
    """A stub that loads the entities has them, records no change, and continues from their commit time."""
    first = RecordingDatastoreStub("dev~app", tmp_path / "file", list)
    put(first, "kept")
    changes = first.take_changes()
    content = [*changes.values(), first.commit_time()]

    second = RecordingDatastoreStub("dev~app", tmp_path / "file", lambda: list(content))

    assert exists(second, "kept")
    assert not exists(second, "other")
    assert second.take_changes() == {}
    assert second.commit_time() == first.commit_time()
    entity = changes.popitem()[1]
    assert entity is not None
    key = entity_pb.EntityProto.FromString(entity).key
    assert encoded_key(key) == encoded_key(entity_pb.Reference.FromString(key.SerializeToString()))


def test_a_late_rollback_ends_no_other_transaction(tmp_path: Path) -> None:
    """A handle is not used again, so what arrives for a transaction that is over changes nothing."""
    stub = RecordingDatastoreStub("dev~app", tmp_path / "file", list)

    def begin() -> Any:
        transaction = datastore_pb.Transaction()
        request = datastore_pb.BeginTransactionRequest(app="dev~app")
        stub.MakeSyncCall("datastore_v3", "BeginTransaction", request, transaction)
        return transaction

    def end(how: str, transaction: Any) -> None:
        response = datastore_pb.CommitResponse() if how == "Commit" else api_base_pb2.VoidProto()
        stub.MakeSyncCall("datastore_v3", how, transaction, response)

    handles = set()
    for _ in range(50):
        over = begin()
        end("Commit", over)
        current = begin()
        with pytest.raises(apiproxy_errors.ApplicationError):
            end("Rollback", over)
        end("Commit", current)
        handles |= {over.handle, current.handle}
    assert len(handles) == 100
    assert stub._txn_map == {}

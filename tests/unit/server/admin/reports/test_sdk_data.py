"""Reports of the datastore and of memcache."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api import apiproxy_stub_map, datastore_types, full_app_id
from google.appengine.api import datastore as sdk_datastore
from google.appengine.api.memcache import memcache_service_pb2

from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.reports.sdk_data import DataReports, SdkServices
from deferred_middleware.server.api.datastore import DatastoreStub
from deferred_middleware.server.api.memcache_keys import KeyedMemcacheStub

APP = "dev~test"


class _NoTasks:
    def recover(self, _committed: object) -> None:
        """There are no transactions."""


@pytest.fixture
def stub_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The SDK's datastore and memcache, empty."""
    monkeypatch.setenv("GAE_APPLICATION", APP)
    full_app_id.put(APP)
    services = apiproxy_stub_map.APIProxyStubMap()
    store = DatastoreStub(APP, tmp_path / "entities", _NoTasks(), on_failure=lambda _error: None)  # type: ignore[arg-type]
    services.RegisterStub("datastore_v3", store)
    services.RegisterStub("memcache", KeyedMemcacheStub())
    monkeypatch.setattr(apiproxy_stub_map, "apiproxy", services)
    yield services
    store.close()


@pytest.fixture
def data(stub_map: Any) -> DataReports:
    """Reports of these services."""

    def call(service: str, method: str, request: Any, response: Any) -> None:
        stub_map.GetStub(service).MakeSyncCall(service, method, request, response)

    return DataReports(SdkServices(app_id=APP, call=call, memcache=stub_map.GetStub("memcache")))


def _put(kind: str, name: str | None = None, namespace: str | None = None, **properties: Any) -> None:
    entity = sdk_datastore.Entity(kind, name=name, namespace=namespace)
    entity.update(properties)
    sdk_datastore.Put(entity)


def test_kinds_and_namespaces(data: DataReports) -> None:
    """Each namespace has its kinds."""
    _put("Greeting", text="hello")
    _put("Order", namespace="shop", n=1)
    assert data.kinds()["kinds"] == ["Greeting"]
    assert data.kinds("shop")["kinds"] == ["Order"]
    assert set(data.kinds()["namespaces"]) == {"", "shop"}


def test_values_are_text(data: DataReports) -> None:
    """Every type of value is shown as text; bytes are not interpreted."""
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    key = datastore_types.Key.from_path("Other", 5)
    _put(
        "Thing", "one", text="<b>", n=5, x=1.5, yes=True, none=None, when=when, key=key, many=["a", "b"],
        blob=datastore_types.Blob(b"cposix\nsystem\n"), long=datastore_types.Text("x" * 1000),
    )  # fmt: skip
    (entity,) = data.entities("Thing")["entities"]
    shown = {name: values[0]["text"] for name, values in entity["properties"].items()}
    assert shown["text"] == "<b>"
    assert (shown["n"], shown["x"], shown["yes"], shown["none"]) == ("5", "1.5", "True", "None")
    assert shown["when"] == "2026-01-02 03:04:05"
    assert "Other" in shown["key"]
    assert shown["blob"].startswith("14 bytes: ")
    assert len(shown["long"]) < 350
    assert [value["text"] for value in entity["properties"]["many"]] == ["a", "b"]
    whole = data.entity(entity["key"])
    assert whole["path"] == "Thing 'one'"
    assert len(whole["properties"]["long"][0]["text"]) == 1000


def test_entities_have_pages(data: DataReports) -> None:
    """Each entity is on one page."""
    for number in range(60):
        _put("Thing", f"t{number:02}", n=number)
    names: list[str] = []
    offset: int | None = 0
    while offset is not None:
        page = data.entities("Thing", offset=offset)
        names += [entity["path"] for entity in page["entities"]]
        offset = page["next_offset"]
    assert len(names) == len(set(names)) == 60


@pytest.mark.parametrize("key", ["", "x", "!!!!", "é", "AAAA", "a" * 5000])
def test_wrong_keys_are_refused(data: DataReports, key: str) -> None:
    """What is no key gets a sentence."""
    with pytest.raises(OperationError):
        data.entity(key)


def test_a_deleted_entity_and_an_unknown_kind(data: DataReports) -> None:
    """What is not there any more gets a sentence."""
    _put("Thing", "one", n=1)
    (entity,) = data.entities("Thing")["entities"]
    sdk_datastore.Delete(datastore_types.Key.from_path("Thing", "one"))
    with pytest.raises(OperationError, match="no entity with this key"):
        data.entity(entity["key"])
    with pytest.raises(OperationError, match="no entities of kind"):
        data.entities("Thing")
    with pytest.raises(OperationError, match="offset"):
        data.entities("Thing", offset=10_001)


def test_memcache_keys_and_statistics(data: DataReports, stub_map: Any) -> None:
    """Keys are listed with their sizes and values; looking at them is no hit."""
    stub = stub_map.GetStub("memcache")
    for key, value in ((b"greeting", b"hello"), (b"\xff", b"\x00")):
        request = memcache_service_pb2.MemcacheSetRequest()
        item = request.item.add()
        item.key, item.value = key, value
        stub.MakeSyncCall("memcache", "Set", request, memcache_service_pb2.MemcacheSetResponse())
    found = data.memcache()
    assert found["statistics"]["items"] == 2
    assert [(key["key"], key["bytes"]) for key in found["keys"]] == [("\\xff", 1), ("greeting", 5)]
    assert [key["value"] for key in data.memcache("gree")["keys"]] == ["hello"]
    assert data.memcache()["statistics"]["hits"] == 0


def test_without_services_there_is_nothing() -> None:
    """A server without the SDK's services has empty reports."""
    nothing = DataReports(None)
    assert nothing.kinds()["kinds"] == []
    assert nothing.memcache()["keys"] == []

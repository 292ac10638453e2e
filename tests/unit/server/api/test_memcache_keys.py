"""Memcache remembers the keys that were written."""

from __future__ import annotations

from typing import Any

import pytest
from google.appengine.api.memcache import memcache_service_pb2 as pb

from deferred_middleware.server.api import memcache_keys
from deferred_middleware.server.api.memcache_keys import KeyedMemcacheStub


def _call(stub: KeyedMemcacheStub, method: str, request: Any, response: Any) -> Any:
    stub.MakeSyncCall("memcache", method, request, response)
    return response


def _set(stub: KeyedMemcacheStub, key: bytes, namespace: str = "") -> None:
    request = pb.MemcacheSetRequest(name_space=namespace)
    item = request.item.add()
    item.key, item.value = key, b"v"
    _call(stub, "Set", request, pb.MemcacheSetResponse())


def test_written_keys_are_known() -> None:
    """Set, incremented and batch-incremented keys are known, the latest first."""
    stub = KeyedMemcacheStub()
    _set(stub, b"a")
    _set(stub, b"b", "other")
    _call(stub, "Increment", pb.MemcacheIncrementRequest(key=b"n", initial_value=1), pb.MemcacheIncrementResponse())
    batch = pb.MemcacheBatchIncrementRequest()
    batch.item.add(key=b"m", initial_value=1)
    _call(stub, "BatchIncrement", batch, pb.MemcacheBatchIncrementResponse())
    _set(stub, b"a")
    assert stub.used_keys() == [("", b"a"), ("", b"m"), ("", b"n"), ("other", b"b")]
    _call(stub, "FlushAll", pb.MemcacheFlushRequest(), pb.MemcacheFlushResponse())
    assert stub.used_keys() == []


def test_the_number_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many keys, the latest are known."""
    monkeypatch.setattr(memcache_keys, "MOST_KEYS", 2)
    stub = KeyedMemcacheStub()
    for key in (b"a", b"b", b"c"):
        _set(stub, key)
    assert stub.used_keys() == [("", b"c"), ("", b"b")]

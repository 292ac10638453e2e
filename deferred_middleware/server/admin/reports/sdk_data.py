"""What the SDK's datastore and memcache hold, for people to look at. Nothing here changes anything.

The pages of a list are found by offsets, because the SDK's datastore keeps all entities in memory.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

from google.protobuf.message import DecodeError

from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.admin.views import view_of

PAGE = 25
_MOST_OFFSET = 10_000
_MOST_KINDS = 1000
_MOST_VALUE_CHARACTERS = 300
_MOST_LONG_VALUE_CHARACTERS = 20_000
_MOST_KEYS = 500

MakeCall = Callable[[str, str, Any, Any], None]
"""Makes a call of an SDK service: its name, the method, the request, and the response to fill in."""


class MemcacheUse(Protocol):
    """How the app uses memcache."""

    def used_keys(self) -> list[tuple[str, bytes]]:
        """Return the namespaces and keys that were written, the latest first."""

    def hits_and_misses(self) -> tuple[int, int, int]:
        """Return the numbers of hits, of misses, and of the hits' bytes."""


@dataclass(frozen=True, kw_only=True)
class SdkServices:
    """The SDK's services of an app. ``memcache`` knows what its calls don't return."""

    app_id: str
    call: MakeCall
    memcache: MemcacheUse


class DataReports:
    """Reads of the datastore and of memcache; without ``services``, there is nothing to read."""

    def __init__(self, services: SdkServices | None) -> None:
        self._services = services

    # The datastore.

    def kinds(self, namespace: str = "") -> dict[str, Any]:
        """Return the namespaces, and the kinds of one of them."""
        if self._services is None:
            return {"namespace": namespace, "namespaces": [], "kinds": []}
        return {
            "namespace": namespace,
            "namespaces": self._names("__namespace__", ""),
            "kinds": [name for name in self._names("__kind__", namespace) if not name.startswith("__")],
        }

    def _names(self, kind: str, namespace: str) -> list[str]:
        return [entity.key.path.element[-1].name for entity in self._run(kind, namespace, limit=_MOST_KINDS)]

    def entities(self, kind: str, namespace: str = "", *, offset: int = 0) -> dict[str, Any]:
        """Return a page of the entities of a kind, by their keys."""
        if offset > _MOST_OFFSET:
            raise bad(f"offset={offset} is more than {_MOST_OFFSET:,}.")
        # The stub remembers a kind that was asked for, as if it had entities.
        kinds = self._names("__kind__", namespace)
        is_known = kind in kinds or len(kinds) == _MOST_KINDS
        found = self._run(kind, namespace, limit=PAGE + 1, offset=offset) if is_known else []
        if not is_known or not (found or offset):
            message = f"The datastore has no entities of kind {kind[:100]!r}."
            raise OperationError(HTTPStatus.NOT_FOUND, "no-such-kind", message)
        shown = [_entity(entity, _MOST_VALUE_CHARACTERS) for entity in found[:PAGE]]
        return {
            "namespace": namespace,
            "kind": kind,
            "properties": sorted({name for entity in shown for name in entity["properties"]}),
            "entities": shown,
            "next_offset": offset + PAGE if len(found) > PAGE else None,
        }

    def entity(self, key: str) -> dict[str, Any]:
        """Return an entity, given by its encoded key, with longer values."""
        from google.appengine.datastore import datastore_pb
        from google.appengine.datastore import entity_bytes_pb2 as entity_pb2

        request, response = datastore_pb.GetRequest(), datastore_pb.GetResponse()
        try:
            data = base64.urlsafe_b64decode(key.encode("ascii") + b"=" * (-len(key) % 4))
            request.key.append(entity_pb2.Reference.FromString(data))
        except (ValueError, DecodeError) as error:
            raise bad(f"{key[:40]!r} is not a key of the datastore.") from error
        if not request.key[0].IsInitialized() or not request.key[0].path.element:
            raise bad(f"{key[:40]!r} is not a key of the datastore.")
        self._call("datastore_v3", "Get", request, response)
        if not response.entity or not response.entity[0].HasField("entity"):
            raise OperationError(HTTPStatus.NOT_FOUND, "no-such-entity", "There is no entity with this key any more.")
        return _entity(response.entity[0].entity, _MOST_LONG_VALUE_CHARACTERS)

    def _run(self, kind: str, namespace: str, *, limit: int, offset: int = 0) -> list[Any]:
        from google.appengine.datastore import datastore_pb

        query, result = datastore_pb.Query(), datastore_pb.QueryResult()
        query.app = "" if self._services is None else self._services.app_id
        query.name_space = namespace
        query.kind = kind
        query.limit = limit
        query.offset = offset
        query.count = limit
        self._call("datastore_v3", "RunQuery", query, result)
        return list(result.result)

    # Memcache.

    def memcache(self, prefix: str = "") -> dict[str, Any]:
        """Return statistics, and the keys that begin with ``prefix``, with the sizes of their values."""
        from google.appengine.api.memcache import memcache_service_pb2

        response = memcache_service_pb2.MemcacheStatsResponse()
        used: list[tuple[str, bytes]] = []
        hits, misses, hit_bytes = 0, 0, 0
        if self._services is not None:
            self._call("memcache", "Stats", memcache_service_pb2.MemcacheStatsRequest(), response)
            used = self._services.memcache.used_keys()
            hits, misses, hit_bytes = self._services.memcache.hits_and_misses()
        statistics = response.stats
        matching = [one for one in used if _text(one[1]).startswith(prefix)]
        return {
            "statistics": {
                "items": statistics.items,
                "bytes": statistics.bytes,
                "hits": hits,
                "misses": misses,
                "hit_bytes": hit_bytes,
                "oldest_item_seconds": statistics.oldest_item_age,
            },
            "keys": [found for one in matching[:_MOST_KEYS] if (found := self._memcache_item(*one)) is not None],
            "matching": len(matching),
        }

    def _memcache_item(self, namespace: str, key: bytes) -> dict[str, Any] | None:
        """Return a key with the size of its value; None if it has none any more."""
        from google.appengine.api.memcache import memcache_service_pb2

        request, response = memcache_service_pb2.MemcacheGetRequest(), memcache_service_pb2.MemcacheGetResponse()
        request.key.append(key)
        request.name_space = namespace
        # Looking at an item is not a use of it.
        request.for_peek = True
        self._call("memcache", "Get", request, response)
        if not response.item:
            return None
        item = response.item[0]
        expires = item.timestamps.expiration_time_sec
        return {
            "namespace": namespace,
            "key": _text(key),
            "bytes": len(item.value),
            "value": _shortened(_content(item.value), _MOST_VALUE_CHARACTERS),
            "expires_usec": expires * 1_000_000 if expires else None,
        }

    def _call(self, service: str, method: str, request: Any, response: Any) -> None:
        from google.appengine.runtime import apiproxy_errors

        if self._services is None:
            raise OperationError(HTTPStatus.NOT_FOUND, "no-such-page", "This server has no SDK services.")
        try:
            self._services.call(service, method, request, response)
        except apiproxy_errors.ApplicationError as error:
            raise bad(f"The {service.partition('_')[0]} refused this: {error.error_detail}") from error


def _entity(entity: Any, most_characters: int) -> dict[str, Any]:
    """Return an entity with its key and its properties as text."""
    properties: dict[str, list[dict[str, str]]] = {}
    for pb in [*entity.property, *entity.raw_property]:
        properties.setdefault(pb.name, []).append(_value(pb, most_characters))
    key = entity.key.SerializeToString()
    return {
        "key": base64.urlsafe_b64encode(key).decode().rstrip("="),
        "path": " / ".join(_element(element) for element in entity.key.path.element),
        "namespace": entity.key.name_space,
        "bytes": entity.ByteSize(),
        "properties": properties,
    }


def _element(element: Any) -> str:
    return f"{element.type} {element.name!r}" if element.name else f"{element.type} {element.id}"


def _value(pb: Any, most_characters: int) -> dict[str, str]:
    """Return the type and the text of a property's value. Nothing is unpickled."""
    from google.appengine.api import datastore_types
    from google.appengine.datastore import entity_bytes_pb2 as entity_pb2

    if pb.meaning in (entity_pb2.Property.BLOB, entity_pb2.Property.ENTITY_PROTO, entity_pb2.Property.BYTESTRING):
        data = pb.value.stringValue
        return {"type": "bytes", "text": f"{len(data):,} bytes: {_shortened(_text(data), most_characters)}"}
    try:
        value = datastore_types.FromPropertyPb(pb)
    except Exception as error:  # noqa: BLE001 - a value that the SDK can't read is shown too
        return {"type": "unknown", "text": f"it can't be read: {type(error).__name__}"}
    if isinstance(value, datetime.datetime):
        return {"type": "datetime", "text": value.isoformat(sep=" ")}
    if isinstance(value, datastore_types.Key):
        return {"type": "key", "text": _shortened(str(value.to_path()), most_characters)}
    kind = "text" if isinstance(value, str) else "none" if value is None else type(value).__name__
    return {"type": kind, "text": _shortened(str(value), most_characters)}


def _content(data: bytes) -> str:
    """Return what memcache holds as text; a pickle as Python, which is read without unpickling."""
    view = view_of(data)
    return view.text if view.kind in ("call", "pickle") and view.problem is None else _text(data)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text):,} characters)"

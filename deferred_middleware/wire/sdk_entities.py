"""Our entities in the SDK's datastore: the functions of :class:`~deferred_middleware.wire.entities.Datastore`.

Entities are read and written with the SDK's low-level datastore API, over a connection of our own. The current
connection may be ndb's, which accepts only ndb's models (SDK: ``ext/ndb/model.py``, ModelAdapter).

Importing this module imports the SDK.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Sequence
from typing import Any

from google.appengine.api import datastore as sdk_datastore
from google.appengine.api import datastore_types
from google.appengine.datastore import datastore_query, datastore_rpc
from google.appengine.ext import ndb

from deferred_middleware.wire.entities import BLOB, DATE, INTEGER, NAME, SCHEMAS, TEXT, Path, StoredEntity


def get(paths: Sequence[Path]) -> list[StoredEntity | None]:
    """Return the entities with these keys, read outside of any transaction."""
    found = _connection().get([_key(path) for path in paths])
    return [None if entity is None else _stored(entity) for entity in found]


def put(entities: Sequence[StoredEntity], *, in_transaction: bool = False) -> None:
    """Write entities, in the current transaction or outside of any."""
    if not in_transaction:
        _connection().put([_entity(entity) for entity in entities])
    elif ndb.in_transaction():
        # A transaction of ndb takes its own models only.
        ndb.put_multi([_model(entity) for entity in entities], use_cache=False, use_memcache=False)
    else:
        sdk_datastore.Put([_entity(entity) for entity in entities])


def delete(paths: Sequence[Path], *, in_transaction: bool = False) -> None:
    """Delete entities, in the current transaction or outside of any."""
    keys = [_key(path) for path in paths]
    if not in_transaction:
        _connection().delete(keys)
    elif ndb.in_transaction():
        ndb.delete_multi([ndb.Key.from_old_key(key) for key in keys], use_cache=False, use_memcache=False)
    else:
        sdk_datastore.Delete(keys)


def older_than(
    kind: str, date: str, time: datetime.datetime, *, limit: int, keys_only: bool = False
) -> list[StoredEntity]:
    """Return up to ``limit`` entities whose property ``date`` is before ``time``, the oldest first."""
    query = sdk_datastore.Query(kind, {f"{date} <": time}, keys_only=keys_only, namespace="")
    query.Order(date)
    options = datastore_query.QueryOptions(limit=limit, keys_only=keys_only)
    batcher = query.GetQuery().run(_connection(), options)
    found = datastore_query.ResultsIterator(batcher)
    if keys_only:
        return [StoredEntity(path=tuple(key.to_path()), properties={}) for key in found]
    return [_stored(entity) for entity in found]


def _connection() -> Any:
    """Return a connection of our own, which is in no transaction whatever surrounds the caller."""
    return datastore_rpc.Connection(adapter=sdk_datastore.DatastoreAdapter())


def _key(path: Path) -> Any:
    return sdk_datastore.Key.from_path(*path, namespace="")


def _entity(stored: StoredEntity) -> Any:
    key = _key(stored.path)
    identifier = {"id": key.id()} if key.name() is None else {"name": key.name()}
    entity = sdk_datastore.Entity(key.kind(), parent=key.parent(), namespace="", **identifier)
    types = SCHEMAS[key.kind()]
    for name, value in stored.properties.items():
        if types[name] == BLOB:
            entity[name] = datastore_types.Blob(value)
        elif types[name] == TEXT:
            entity[name] = datastore_types.Text(value)
        else:
            entity[name] = value
    return entity


def _stored(entity: Any) -> StoredEntity:
    return StoredEntity(
        path=tuple(entity.key().to_path()), properties={name: _plain(value) for name, value in entity.items()}
    )


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return bytes(value)
    return str(value) if isinstance(value, str) else value


def _model(stored: StoredEntity) -> Any:
    """Return the model of ndb that is stored as :func:`_entity` is."""
    key = _key(stored.path)
    model = _model_class(key.kind(), tuple(sorted(stored.properties)))
    return model(key=ndb.Key.from_old_key(key), **{f"p_{name}": value for name, value in stored.properties.items()})


@functools.lru_cache(maxsize=16)
def _model_class(kind: str, names: tuple[str, ...]) -> Any:
    types = {
        BLOB: ndb.BlobProperty,
        DATE: ndb.DateTimeProperty,
        INTEGER: ndb.IntegerProperty,
        NAME: ndb.StringProperty,
        TEXT: ndb.TextProperty,
    }
    made = {f"p_{name}": types[SCHEMAS[kind][name]](name) for name in names}
    return type(kind, (ndb.Model,), made)  # ndb takes the name of the class as the kind

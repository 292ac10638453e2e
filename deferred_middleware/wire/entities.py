"""Write to the datastore inside the current transaction or outside of any, by the SDK's public names.

Importing this module imports nothing of the SDK; calling its functions does.
"""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping, Sequence
from typing import Any


def is_available() -> bool:
    """Tell whether a datastore answers in this process."""
    from google.appengine.api import apiproxy_stub_map

    return apiproxy_stub_map.apiproxy.GetStub("datastore_v3") is not None


def in_transaction() -> bool:
    """Tell whether a transaction of the SDK's ndb or db surrounds the caller.

    Both make the transaction's connection the current one while the transaction's function runs, and ndb follows its
    tasklets with it (SDK: ``ext/ndb/tasklets.py``).
    """
    from google.appengine.api import datastore

    return bool(datastore.IsInTransaction())


def outside_transaction() -> Any:
    """Return a connection of our own, which is in no transaction whatever surrounds the caller."""
    from google.appengine.api import datastore
    from google.appengine.datastore import datastore_rpc

    return datastore_rpc.Connection(adapter=datastore.DatastoreAdapter())


def query(kind: str, filters: Mapping[str, Any], *, limit: int) -> list[Any]:
    """Return up to ``limit`` entities of the default namespace, read outside of any transaction."""
    from google.appengine.api import datastore
    from google.appengine.datastore import datastore_query

    options = datastore_query.QueryOptions(limit=limit)
    batcher = datastore.Query(kind, dict(filters), namespace="").GetQuery().run(outside_transaction(), options)
    return list(datastore_query.ResultsIterator(batcher))


def put_in_transaction(entities: Sequence[Any]) -> None:
    """Write ``datastore.Entity`` objects, whose properties are blobs or dates, in the current transaction."""
    from google.appengine.api import datastore
    from google.appengine.ext import ndb

    if ndb.in_transaction():
        # A transaction of ndb takes its own models only.
        ndb.put_multi([_model_of(entity) for entity in entities], use_cache=False, use_memcache=False)
    else:
        datastore.Put(list(entities))


def delete_in_transaction(keys: Sequence[Any]) -> None:
    """Delete the entities with ``datastore.Key`` objects in the current transaction."""
    from google.appengine.api import datastore
    from google.appengine.ext import ndb

    if ndb.in_transaction():
        ndb.delete_multi([ndb.Key.from_old_key(key) for key in keys], use_cache=False, use_memcache=False)
    else:
        datastore.Delete(list(keys))


def _model_of(entity: Any) -> Any:
    """Return the model of ndb that is stored as ``entity`` is."""
    from google.appengine.ext import ndb

    properties = sorted((name, isinstance(value, datetime.datetime)) for name, value in entity.items())
    model = _model_class(entity.kind(), tuple(properties))
    return model(key=ndb.Key.from_old_key(entity.key()), **{name: _plain(value) for name, value in entity.items()})


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, bytes) else value


@functools.lru_cache(maxsize=16)
def _model_class(kind: str, properties: tuple[tuple[str, bool], ...]) -> Any:
    """Return the model class of a kind; for each property: its name, and whether it is a date or a blob."""
    from google.appengine.ext import ndb

    made = {name: ndb.DateTimeProperty(name) if is_date else ndb.BlobProperty(name) for name, is_date in properties}
    return type(kind, (ndb.Model,), made)  # ndb takes the name of the class as the kind

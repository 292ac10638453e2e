"""Our entities in google-cloud-ndb's datastore: the functions of :class:`~deferred_middleware.wire.entities.Datastore`.

google-cloud-ndb works only inside the context of a client. Outside of a transaction each call makes a context of its
own: with the client of the current context, or else with the client that the app used last, or with a new one.

Importing this module imports google-cloud-ndb.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from google.cloud import ndb
from google.cloud.ndb import context as context_module

from deferred_middleware.wire.entities import BLOB, DATE, INTEGER, NAME, SCHEMAS, TEXT, Path, StoredEntity

_lock = threading.Lock()
_client: Any = None
"""The client that was used last; written under the lock."""


def get(paths: Sequence[Path]) -> list[StoredEntity | None]:
    """Return the entities with these keys, read outside of any transaction."""
    with _own_context():
        _define([path[-2] for path in paths])
        found = ndb.get_multi([_key(path) for path in paths], use_cache=False, use_global_cache=False)
        return [None if model is None else _stored(model) for model in found]


def put(entities: Sequence[StoredEntity], *, in_transaction: bool = False) -> None:
    """Write entities, in the current transaction or outside of any."""
    with contextlib.nullcontext() if in_transaction else _own_context():
        ndb.put_multi([_model(entity) for entity in entities], use_cache=False, use_global_cache=False)


def delete(paths: Sequence[Path], *, in_transaction: bool = False) -> None:
    """Delete entities, in the current transaction or outside of any."""
    with contextlib.nullcontext() if in_transaction else _own_context():
        ndb.delete_multi([_key(path) for path in paths], use_cache=False, use_global_cache=False)


def older_than(
    kind: str, date: str, time: datetime.datetime, *, limit: int, keys_only: bool = False
) -> list[StoredEntity]:
    """Return up to ``limit`` entities whose property ``date`` is before ``time``, the oldest first."""
    with _own_context():
        model = _model_class(kind)
        dated = getattr(model, f"p_{date}")
        found = model.query(dated < time, namespace="").order(dated).fetch(limit, keys_only=keys_only)
        if keys_only:
            return [StoredEntity(path=key.flat(), properties={}) for key in found]
        return [_stored(each) for each in found]


@contextlib.contextmanager
def _own_context() -> Iterator[None]:
    """Run a ``with`` block in a context of its own, in the default namespace and in no transaction."""
    current = context_module.get_context(False)
    client = _remembered(None if current is None else current.client)
    with context_module.Context(client, namespace="").use() as own:
        yield
        own.eventloop.run()


def remember_client() -> None:
    """Remember the client of the current context for later, when there may be no context."""
    _remembered(context_module.get_context().client)


def _remembered(current: Any) -> Any:
    global _client
    if current is not None:
        if current is not _client:
            with _lock:
                _client = current
        return current
    with _lock:
        if _client is None:
            _client = ndb.Client()
        return _client


def _after_fork() -> None:
    """Forget the client: its connection does not survive a fork."""
    global _lock, _client
    _lock = threading.Lock()
    _client = None


os.register_at_fork(after_in_child=_after_fork)


def _key(path: Path) -> Any:
    return ndb.Key(*path, namespace="")


def _model(stored: StoredEntity) -> Any:
    model = _model_class(stored.path[-2])
    return model(key=_key(stored.path), **{f"p_{name}": value for name, value in stored.properties.items()})


def _stored(model: Any) -> StoredEntity:
    kind = model.key.kind()
    values = {name: getattr(model, f"p_{name}", None) for name in SCHEMAS[kind]}
    return StoredEntity(
        path=model.key.flat(), properties={name: value for name, value in values.items() if value is not None}
    )


def _define(kinds: Sequence[str]) -> None:
    """Define the models of kinds, because ndb can read only those that it knows."""
    for kind in kinds:
        _model_class(kind)


@functools.lru_cache(maxsize=16)
def _model_class(kind: str) -> Any:
    types = {
        BLOB: ndb.BlobProperty,
        DATE: ndb.DateTimeProperty,
        INTEGER: ndb.IntegerProperty,
        NAME: ndb.StringProperty,
        TEXT: ndb.TextProperty,
    }
    made = {f"p_{name}": types[type_](name) for name, type_ in SCHEMAS[kind].items()}
    return type(kind, (ndb.Model,), made)  # ndb takes the name of the class as the kind

"""Payloads that don't fit in a task: compressed, or if that is not enough kept in the datastore until the task is done.

The task then carries a reference: :data:`~deferred_middleware.wire.protocol.OVERFLOW_MAGIC` and a JSON object with
the key,
size and SHA-256 of what is kept, so that a signature of the task covers it. It is kept as chunks, children of a key of
their own: one entity group, in the default namespace whatever the tenant, so that one query finds what expired.

What happens to the chunks:

* In a transaction they are written in it, and are there if and when the task is.
* When the task is known not to be enqueued they are removed. When that is *not* known, because the queue did not
  answer, they stay: the task may be there, and would be lost without them.
* When the task is done a receipt takes their place, a small entity, because a queue may deliver a task again that is
  done: that would otherwise find its payload missing and be tried for a month.
* The payload of a task that failed for good stays, so that it can be run again.
* What is left, receipts included, goes when it expires: :func:`deferred_middleware.wire.sweeping.sweep`.

Entities are read and written with the SDK's low-level datastore API, over a connection of our own: the current one may
be ndb's, which takes its models only (SDK: ``ext/ndb/model.py``, ModelAdapter).

Remove payloads from the datastore whose time is over; see :mod:`deferred_middleware.wire.overflow`.

Most are removed when their task is done. What is left is what nobody could remove: an enqueue whose outcome was not
known, a process that ended in between, a task that failed for good.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import re
import time
import uuid
import zlib
from collections.abc import Iterator
from typing import Any, Final

from deferred_middleware.errors import PayloadError, PayloadFinishedError, PayloadMissingError
from deferred_middleware.wire import entities, protocol

logger = logging.getLogger("deferred_middleware")

KIND: Final = "_DeferredPayload"
"""Kind of the entities."""
EXPIRES: Final = "expires"
"""Property of each: when it may be removed, in UTC."""
_DATA: Final = "data"
_CHUNK_BYTES: Final = 1_000_000  # an entity has to stay below 1,048,572 bytes, with its key and properties
_CHUNKS_AT_ONCE: Final = 8  # to one Get; an answer holds 32 MB
_KEEP_SECONDS: Final = (protocol.MAX_TASK_AGE_DAYS + 1) * 24 * 3600
_KEY: Final = re.compile(r"[0-9a-f]{32}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def forms(body: bytes) -> Iterator[bytes]:
    """Yield the payload ``body`` as it is, then compressed if that is smaller."""
    yield body
    compressed = zlib.compress(body)
    if len(compressed) < len(body):
        yield compressed


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What a task carries instead of its payload."""

    key: str
    """Name of the key whose children the chunks are."""
    namespace: str = ""
    size: int
    """Bytes of the payload, as a task would have carried it."""
    sha256: str
    """Of these bytes, in hexadecimal."""
    chunks: int
    expires: int
    """When the chunks may be removed, in seconds since 1970."""

    @classmethod
    def to(cls, body: bytes, eta_posix: float | None) -> Reference:
        """Return a new reference to ``body``, kept for as long as a task that is due at ``eta_posix`` may live."""
        return cls(
            key=uuid.uuid4().hex,
            size=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            chunks=-(-len(body) // _CHUNK_BYTES),
            expires=int(max(time.time(), eta_posix or 0.0) + _KEEP_SECONDS),
        )

    @classmethod
    def parse(cls, body: bytes, limit_bytes: int) -> Reference | None:
        """Return the reference in a task's body, or None if the body is the payload itself.

        Raises :class:`PayloadError` if it is damaged, or refers to more than ``limit_bytes``.
        """
        if not body.startswith(protocol.OVERFLOW_MAGIC):
            return None
        try:
            reference = cls(**json.loads(body[len(protocol.OVERFLOW_MAGIC) :]))
        except (ValueError, TypeError) as error:
            raise PayloadError(f"the reference to the task's payload is damaged: {error}") from error
        if not reference._is_sound():
            raise PayloadError("the reference to the task's payload makes no sense")
        if reference.size > limit_bytes:
            raise PayloadError(
                f"the task's payload takes {reference.size:,} bytes, and DEFERRED_MAX_PAYLOAD_BYTES is {limit_bytes:,}"
            )
        return reference

    def _is_sound(self) -> bool:
        texts = (self.key, self.sha256)
        numbers = (self.size, self.chunks, self.expires)
        return (
            all(isinstance(text, str) for text in texts)
            and all(type(number) is int for number in numbers)
            and _KEY.fullmatch(self.key) is not None
            and _SHA256.fullmatch(self.sha256) is not None
            and self.namespace == ""
            and 0 < self.chunks <= self.size
        )

    def __bytes__(self) -> bytes:
        """Return it as a task carries it."""
        return protocol.OVERFLOW_MAGIC + json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()

    def root(self) -> Any:
        """Return the datastore key of the receipt, the chunks' parent."""
        from google.appengine.api import datastore

        return datastore.Key.from_path(KIND, self.key, namespace=self.namespace)

    def chunk_keys(self) -> list[Any]:
        """Return the datastore keys of the chunks, in their order."""
        from google.appengine.api import datastore

        root = self.root()
        return [datastore.Key.from_path(KIND, i + 1, parent=root) for i in range(self.chunks)]


class Overflowed:
    """A payload on its way to the datastore, for one task.

    If ``transactional`` is true, the task is added in the current datastore transaction.
    """

    def __init__(self, body: bytes, eta_posix: float | None, *, transactional: bool) -> None:
        self.reference = Reference.to(body, eta_posix)
        self._body = body
        self._transactional = transactional
        self._stored = False

    def store(self) -> None:
        """Write the chunks, unless that was done before; raises the SDK's ``datastore_errors``."""
        if self._stored:
            return
        chunks = [
            _entity(key, self.reference, self._body[number * _CHUNK_BYTES :][:_CHUNK_BYTES])
            for number, key in enumerate(self.reference.chunk_keys())
        ]
        self._stored = True  # once begun: a write that fails may have succeeded in part
        if self._transactional:
            entities.put_in_transaction(chunks)
        else:
            entities.outside_transaction().put(chunks)

    def remove(self) -> None:
        """Remove the chunks of a task that was not enqueued; if that fails it is logged, and they are swept later."""
        if not self._stored or (self._transactional and not entities.in_transaction()):
            return
        try:
            if self._transactional:
                entities.delete_in_transaction(self.reference.chunk_keys())
            else:
                entities.outside_transaction().delete(self.reference.chunk_keys())
        except Exception as error:  # noqa: BLE001 - the enqueue's own error is what the caller has to see
            _left_behind(self.reference, error)


def fetch(reference: Reference) -> bytes:
    """Return the payload that ``reference`` refers to, as a task would have carried it.

    Raises:
        PayloadFinishedError: the task that carried it is done.
        PayloadMissingError: it is not in the datastore, or the datastore can't be asked.
        PayloadError: it is not what the reference says it is.
    """
    connection = entities.outside_transaction()
    keys = [reference.root(), *reference.chunk_keys()]
    gathered = bytearray()
    for start in range(0, len(keys), _CHUNKS_AT_ONCE):
        # By their keys, which always finds what was written last.
        try:
            found = connection.get(keys[start : start + _CHUNKS_AT_ONCE])
        except Exception as error:
            raise PayloadMissingError(
                reference.key, f"the datastore could not be asked for the task's payload: {error}"
            ) from error
        if start == 0 and found.pop(0) is not None:
            raise PayloadFinishedError(reference.key, "the task was done before, and its payload removed")
        for entity in found:
            if entity is None:
                raise PayloadMissingError(
                    reference.key, f"the task's payload is not in the datastore ({KIND} {reference.key!r})"
                )
            gathered += entity[_DATA]
            if len(gathered) > reference.size:
                break
    if len(gathered) != reference.size or hashlib.sha256(gathered).hexdigest() != reference.sha256:
        raise PayloadError(f"the task's payload is not the one that it was enqueued with ({KIND} {reference.key!r})")
    return bytes(gathered)


def finish(reference: Reference) -> None:
    """Remove the payload of a task that is done, and leave a receipt; what fails is logged and left to the sweep."""
    connection = entities.outside_transaction()
    try:
        connection.put([_entity(reference.root(), reference, None)])
        connection.delete(reference.chunk_keys())
    except Exception as error:  # noqa: BLE001 - the task is done, whatever becomes of its payload
        _left_behind(reference, error)


def _entity(key: Any, reference: Reference, data: bytes | None) -> Any:
    from google.appengine.api import datastore, datastore_types

    identifier = {"id": key.id()} if key.name() is None else {"name": key.name()}
    entity = datastore.Entity(KIND, parent=key.parent(), namespace=reference.namespace, **identifier)
    entity[EXPIRES] = datetime.datetime.fromtimestamp(reference.expires, datetime.timezone.utc).replace(tzinfo=None)
    if data is not None:
        entity[_DATA] = datastore_types.Blob(data)
    return entity


def _left_behind(reference: Reference, error: BaseException) -> None:
    logger.warning(
        "a payload stays in the datastore until it is swept (%s %r): %s: %s",
        KIND,
        reference.key,
        type(error).__name__,
        error,
        exc_info=error,
    )


_BATCH = 500  # keys to one Delete (SDK: datastore/datastore_rpc.py, MAX_DELETE_KEYS)


def sweep(*, max_seconds: float = 300.0) -> int:
    """Remove the expired payloads; return how many entities that were.

    It ends after ``max_seconds`` at the latest, and what is left then is for the next one. Safe to run at any time, and
    at the same time as another. Raises the SDK's ``datastore_errors``.
    """
    from google.appengine.api import datastore

    ends_at = time.monotonic() + max_seconds
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    connection = entities.outside_transaction()
    removed = 0
    while time.monotonic() < ends_at:
        query = datastore.Query(KIND, {f"{EXPIRES} <": now}, keys_only=True, namespace="")
        keys = query.Get(_BATCH)
        if not keys:
            break
        connection.delete(keys)
        removed += len(keys)
        if len(keys) < _BATCH:
            break
    logger.info("%d expired entities of payloads were removed from the datastore", removed)
    return removed

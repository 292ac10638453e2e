"""Payloads that don't fit in a task are compressed, or if that is not enough, kept in the datastore.

Until it is done, a task whose payload is kept in the datastore carries a reference instead:
:data:`~deferred_middleware.wire.protocol.OVERFLOW_MAGIC` and a JSON object with the key, the size and the SHA-256 of
the payload, so that a signature of the task covers the payload too. The payload is stored in chunks, which are
children of one key. They form one entity group in the default namespace, whatever the current namespace is, so that
one query finds all expired entities.

The chunks have this life:

* If the task is added in a transaction, the chunks are written in the same transaction: they exist if and only if the
  task does.
* If the task is known not to be enqueued, the chunks are removed. If that is *not* known, because the queue did not
  answer, they stay: if the queue has the task, the task needs them.
* When the response that says that the task is done is sent, a small entity replaces them: the receipt. A queue may
  deliver a task again after it is done. Without the receipt, the task would not find its payload, and would be retried
  for a month. The receipt has the retry count of the attempt. If a later attempt finds it, then a layer that had read
  the whole response failed afterwards.
* The payload of a task that failed for good stays, so that the task can be run again.
* Chunks that nobody could remove, and receipts, are removed after they expire: see :func:`sweep`.

The datastore is that of the SDK or of google-cloud-ndb; see :mod:`deferred_middleware.wire.entities`.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from typing import Any, Final

from deferred_middleware.errors import PayloadError, PayloadFinishedError, PayloadMissingError
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.wire import entities, protocol
from deferred_middleware.wire.monotonic import monotonic

logger: Final = get_logger("deferred_middleware")

KIND: Final = "_DeferredPayload"
"""The kind of the entities."""
EXPIRES: Final = "expires"
"""The property of each entity that says when it may be removed, in UTC."""
_DATA: Final = "data"
_RETRY_COUNT: Final = "retry_count"
_CHUNK_BYTES: Final = 1_000_000  # an entity takes at most 1,048,572 bytes, with its key and properties
_CHUNKS_AT_ONCE: Final = 8  # in one Get; an answer takes at most 32 MB
_KEEP_SECONDS: Final = (protocol.MAX_TASK_AGE_DAYS + 1) * 24 * 3600
_BATCH: Final = 500  # keys in one Delete (SDK: datastore/datastore_rpc.py, MAX_DELETE_KEYS)
_KEY: Final = re.compile(r"[0-9a-f]{32}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def forms(body: bytes) -> Iterator[bytes]:
    """Yield the payload ``body`` as it is, and then compressed if that is smaller."""
    yield body
    compressed = zlib.compress(body)
    if len(compressed) < len(body):
        yield compressed


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The reference that a task carries instead of its payload."""

    key: str
    """The name of the datastore key that is the parent of the chunks."""
    namespace: str = ""
    size: int
    """The size in bytes of the payload, as a task would have carried it."""
    sha256: str
    """The SHA-256 of these bytes, in hexadecimal."""
    chunks: int
    expires: int
    """The time at which the chunks may be removed, in seconds since 1970."""

    @classmethod
    def to(cls, body: bytes, eta_posix: float | None) -> Reference:
        """Return a new reference to ``body``, which is kept for as long as a task with this ETA may live."""
        return cls(
            key=os.urandom(16).hex(),
            size=len(body),
            sha256=hashlib.sha256(body).hexdigest(),
            chunks=-(-len(body) // _CHUNK_BYTES),
            expires=int(max(time.time(), eta_posix or 0.0) + _KEEP_SECONDS),
        )

    @classmethod
    def parse(cls, body: bytes, limit_bytes: int) -> Reference | None:
        """Return the reference in a task's body, or None if the body is the payload itself.

        Raises :class:`PayloadError` if the reference is damaged, or if the payload has more than ``limit_bytes``.
        """
        if not body.startswith(protocol.OVERFLOW_MAGIC):
            return None
        try:
            reference = cls(**json.loads(body[len(protocol.OVERFLOW_MAGIC) :]))
        except (ValueError, TypeError, RecursionError) as error:
            raise PayloadError(f"the reference to the task's payload is damaged: {error}") from error
        if not reference._is_valid():
            raise PayloadError("the reference to the task's payload has invalid values")
        if reference.size > limit_bytes:
            raise PayloadError(
                f"the task's payload takes {reference.size:,} bytes, but DEFERRED_MAX_PAYLOAD_BYTES is {limit_bytes:,}"
            )
        return reference

    def _is_valid(self) -> bool:
        texts = (self.key, self.sha256)
        numbers = (self.size, self.chunks, self.expires)
        return (
            all(isinstance(text, str) for text in texts)
            and all(type(number) is int for number in numbers)
            and _KEY.fullmatch(self.key) is not None
            and _SHA256.fullmatch(self.sha256) is not None
            and self.namespace == ""
            and self.size > 0
            and self.chunks == -(-self.size // _CHUNK_BYTES)
        )

    def __bytes__(self) -> bytes:
        """Return the reference as a task carries it."""
        return protocol.OVERFLOW_MAGIC + json.dumps(dataclasses.asdict(self), separators=(",", ":")).encode()

    def root(self) -> entities.Path:
        """Return the datastore key of the receipt, which is the parent of the chunks."""
        return (KIND, self.key)

    def chunk_keys(self) -> list[entities.Path]:
        """Return the datastore keys of the chunks, in order."""
        return [(*self.root(), KIND, i + 1) for i in range(self.chunks)]


class Overflowed:
    """A payload to keep in the datastore, for one task.

    If ``transactional`` is true, the task is added in the current datastore transaction.
    """

    def __init__(self, body: bytes, eta_posix: float | None, *, transactional: bool) -> None:
        self.reference: Reference = Reference.to(body, eta_posix)
        self._body = body
        self._transactional = transactional
        self._stored = False

    def store(self) -> None:
        """Write the chunks if they are not written yet. Raises the datastore's exceptions."""
        if self._stored:
            return
        chunks = [
            _entity(key, self.reference, data=self._body[number * _CHUNK_BYTES :][:_CHUNK_BYTES])
            for number, key in enumerate(self.reference.chunk_keys())
        ]
        self._stored = True  # before the write, because a write that fails may have written some chunks
        entities.datastore().put(chunks, in_transaction=self._transactional)

    def remove(self) -> None:
        """Remove the chunks of a task that was not enqueued. A failure is logged; the sweep removes them later."""
        if not self._stored or (self._transactional and not entities.in_transaction()):
            return
        try:
            entities.datastore().delete(self.reference.chunk_keys(), in_transaction=self._transactional)
        except Exception as error:  # noqa: BLE001 - the caller has to get the error of the enqueue
            _log_left_behind(self.reference, error)


def fetch(reference: Reference) -> bytes:
    """Return the payload that ``reference`` refers to, as a task would have carried it.

    Raises:
        PayloadFinishedError: the task that carried the payload is done.
        PayloadMissingError: the payload is not in the datastore, or the datastore did not answer.
        PayloadError: the payload does not match the reference.
    """
    keys = [reference.root(), *reference.chunk_keys()]
    gathered = bytearray()
    for start in range(0, len(keys), _CHUNKS_AT_ONCE):
        # A Get by key always returns the latest write.
        try:
            found = entities.datastore().get(keys[start : start + _CHUNKS_AT_ONCE])
        except Exception as error:
            raise PayloadMissingError(
                reference.key, f"the task's payload could not be read from the datastore: {error}"
            ) from error
        if start == 0 and (receipt := found.pop(0)) is not None:
            raise PayloadFinishedError(
                reference.key, _retry_count_of(receipt), "the task was already done, and its payload was removed"
            )
        for entity in found:
            if entity is None:
                raise PayloadMissingError(
                    reference.key, f"the task's payload is not in the datastore ({KIND} {reference.key!r})"
                )
            gathered += entity.properties.get(_DATA, b"")  # type: ignore[arg-type] # a blob
            if len(gathered) > reference.size:
                break
    if len(gathered) != reference.size or hashlib.sha256(gathered).hexdigest() != reference.sha256:
        raise PayloadError(
            f"the payload in the datastore is not the payload of the enqueued task ({KIND} {reference.key!r})"
        )
    return bytes(gathered)


def _retry_count_of(receipt: entities.StoredEntity) -> int | None:
    found = receipt.properties.get(_RETRY_COUNT)
    return found if isinstance(found, int) else None


def finish(reference: Reference, retry_count: int | None) -> None:
    """Replace the payload of a task that is done by a receipt. A failure is logged; the sweep removes the payload.

    ``retry_count`` is that of the attempt in which the call returned; None if the call was enqueued again instead.
    """
    try:
        datastore = entities.datastore()
        attempt = {} if retry_count is None else {_RETRY_COUNT: retry_count}
        datastore.put([_entity(reference.root(), reference, **attempt)])
        datastore.delete(reference.chunk_keys())
    except Exception as error:  # noqa: BLE001 - the task is done, even if its payload stays
        _log_left_behind(reference, error)


def _entity(path: entities.Path, reference: Reference, **properties: Any) -> entities.StoredEntity:
    expires = datetime.datetime.fromtimestamp(reference.expires, datetime.timezone.utc).replace(tzinfo=None)
    return entities.StoredEntity(path=path, properties={EXPIRES: expires, **properties})


def _log_left_behind(reference: Reference, error: BaseException) -> None:
    logger.warning(
        "a payload stays in the datastore until the next sweep after it expires (%s %r): %s: %s",
        KIND,
        reference.key,
        type(error).__name__,
        error,
        exc_info=error,
    )


def sweep(*, max_seconds: float = 300.0) -> int:
    """Remove the expired payloads and receipts; return the number of entities removed.

    The sweep stops after ``max_seconds``, and leaves the rest to the next sweep. It is safe to run at any time, and at
    the same time as another sweep. Raises the datastore's exceptions.
    """
    ends_at = monotonic() + max_seconds
    now = datetime.datetime.fromtimestamp(time.time(), datetime.timezone.utc).replace(tzinfo=None)
    datastore = entities.datastore()
    removed = 0
    while monotonic() < ends_at:
        found = datastore.older_than(KIND, EXPIRES, now, limit=_BATCH, keys_only=True)
        if not found:
            break
        datastore.delete([entity.path for entity in found])
        removed += len(found)
        if len(found) < _BATCH:
            break
    logger.info("removed %d expired payload entities from the datastore", removed)
    return removed

"""The datastore of the local server: the SDK's stub, made fit for several threads and for a sudden end.

The SDK's stub keeps all entities in memory and writes its whole file at each commit, as a pickle that it neither syncs
nor closes when it reads it. Here the commits that wait for one another share one write, the file has a plain format (so
that nothing is unpickled), and it is replaced only by one that is wholly on disk.

The SDK's stub enqueues the tasks of a transaction after its commit, and drops those that can't be. Here a commit with
tasks has four steps, and whichever of them a server doesn't live to see, its successor finds the entities *and* the
tasks, or neither:

1. the tasks are stored, held (:mod:`~deferred_middleware.server.store.transactional`);
2. the entities are committed in memory; when that fails the held tasks are dropped;
3. the file is written, with the transaction's id among those whose tasks may still be held;
4. the tasks are let go, and the caller gets its answer.
"""

from __future__ import annotations

import logging
import secrets
import struct
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from google.appengine.api import datastore_file_stub
from google.appengine.datastore import datastore_pb, datastore_stub_util
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.files import replacing

_log = logging.getLogger(__name__)

DATASTORE_FILE = "datastore.bin"
"""Name of the datastore's file in the data directory."""

# The file: this line; the time of the last commit in the stub's own count; the number of entities; the number of
# transactions whose tasks may be held, and their ids; then each entity's length and its bytes, an EntityProto. Numbers
# are big-endian. Version 1 had no transactions.
_MAGIC = b"deferred_middleware datastore 2\n"
_MAGIC_1 = b"deferred_middleware datastore 1\n"
_HEADER = struct.Struct(">QQ")
_LENGTH = struct.Struct(">I")
_ID_BYTES = 16

_LET_GO_AGAIN_SECONDS = 1.0


class TransactionalQueue(Protocol):
    """What keeps the tasks of transactions."""

    def hold(self, adds: Sequence[Any], transaction: str) -> None:
        """Store tasks, held; ``adds`` are ``TaskQueueAddRequest``. What it raises is the commit's answer."""

    def drop_held(self, transaction: str) -> None:
        """Forget held tasks."""

    def let_go(self, transactions: Collection[str]) -> None:
        """Let held tasks be run."""

    def settle_held(self, committed: Collection[str]) -> None:
        """Let go what an earlier server held for ``committed`` transactions, and forget the rest."""


class DatastoreStub(datastore_file_stub.DatastoreFileStub):  # type: ignore[misc] # the SDK has no types
    """Answers ``datastore_v3`` for the app ``app_id`` from the file ``path``, which is made if there is none.

    A call returns when a write that began after its commit has ended. ``queue`` gets the tasks of transactions; what it
    held when an earlier server ended is settled. Raises :class:`ServerError` when the file can't be read.
    """

    def __init__(self, app_id: str, path: Path, queue: TransactionalQueue) -> None:
        self._path = path
        self._queue = queue
        # Transactions in memory or in the file whose tasks may be held; and those of them that nobody lets go unless
        # the next who can does, because a write failed.
        self._held: set[str] = set()
        self._orphans: set[str] = set()
        self._closed = False
        # The stub isn't made for several threads; its own locks are about transactions.
        self._call_lock = threading.RLock()
        self._write_lock = threading.Lock()
        self._committed = 0
        self._written = 0
        self._snapshot: Sequence[Any] = ()
        try:
            super().__init__(
                app_id,
                str(path),
                use_atexit=False,
                # As Firestore in Datastore mode: queries see what was committed, and IDs are not counted up.
                consistency_policy=datastore_stub_util.MasterSlaveConsistencyPolicy(),
                auto_id_policy=datastore_stub_util.SCATTERED,
            )
        except (apiproxy_errors.ApplicationError, ValueError, OSError) as error:
            reason = (str(error) or type(error).__name__).strip().splitlines()[0]
            raise ServerError(
                f"The datastore's file {path} can't be read ({reason}); "
                "put a copy of it back, or move it away to begin with an empty datastore."
            ) from error
        queue.settle_held(self._held)
        self._held.clear()

    def MakeSyncCall(self, service: str, call: str, request: Any, response: Any, request_id: str | None = None) -> None:
        """Answer one call; return when what it changed is on disk."""
        if call == "Commit" and (adds := self._tasks_of(request)):
            self._commit_with_tasks(adds, request, response, request_id)
            return
        with self._call_lock:
            before = self._committed
            super().MakeSyncCall(service, call, request, response, request_id)
            committed = self._committed
        if committed != before:
            self._write_up_to(committed)

    def _tasks_of(self, transaction: Any) -> list[Any]:
        """Return the tasks that were added in a transaction; none when there is no such transaction."""
        with self._call_lock:
            live = self._txn_map.get(transaction.handle)
            return [] if live is None else list(live._actions)

    def _commit_with_tasks(self, adds: Sequence[Any], request: Any, response: Any, request_id: str | None) -> None:
        transaction = secrets.token_hex(_ID_BYTES)
        # Not within the lock, so that transactions share the queue's commits.
        self._queue.hold(adds, transaction)
        try:
            with self._call_lock:
                self._commit_in_memory(adds, request, response, request_id)
                self._held.add(transaction)
                # Also when there are no entities in the transaction: the file has to know of it.
                self._committed += 1
                committed = self._committed
        except BaseException:
            self._queue.drop_held(transaction)
            raise
        try:
            self._write_up_to(committed)
        except BaseException:
            # The entities are there, as far as this server goes, and the next write will have them.
            with self._call_lock:
                self._orphans.add(transaction)
            raise
        self._let_go({transaction})

    def _commit_in_memory(self, adds: Sequence[Any], request: Any, response: Any, request_id: str | None) -> None:
        live = self._txn_map.get(request.handle)
        if live is not None:
            if len(live._actions) != len(adds):
                raise apiproxy_errors.ApplicationError(
                    datastore_pb.Error.BAD_REQUEST, "a task was added while the transaction was being committed"
                )
            # The stub would enqueue them itself.
            live._actions = []
        try:
            super().MakeSyncCall("datastore_v3", "Commit", request, response, request_id)
        except BaseException:
            if live is not None:
                live._actions = list(adds)
            raise

    def _let_go(self, transactions: set[str]) -> None:
        """Let the tasks be run of transactions that are on disk. When that fails it is tried again, here or later."""
        try:
            self._queue.let_go(transactions)
        except Exception:  # noqa: BLE001 - the transaction is committed, and the caller is told so
            _log.exception("Tasks of a committed transaction can't be let go; it is tried again.")
            if self._closed:
                return  # the next start does it
            timer = threading.Timer(_LET_GO_AGAIN_SECONDS, self._let_go, [transactions])
            timer.daemon = True
            timer.start()
            return
        with self._call_lock:
            self._held -= transactions

    def Write(self) -> None:
        """Note that there is something to write; :meth:`MakeSyncCall` writes it once the call is done."""
        self._committed += 1

    def close(self) -> None:
        """Write what is not written yet."""
        with self._call_lock:
            self._closed = True
            self._committed += 1
            committed = self._committed
        self._write_up_to(committed)

    def _write_up_to(self, committed: int) -> None:
        with self._write_lock:
            if self._written >= committed:
                return
            with self._call_lock:
                reached = self._committed
                super().Write()  # leaves the encoded entities in self._snapshot
                snapshot, self._snapshot = self._snapshot, ()
                held = sorted(self._held)
                orphans, self._orphans = self._orphans, set()
            try:
                self._write_file(snapshot, held)
            except BaseException:
                with self._call_lock:
                    self._orphans |= orphans
                raise
            self._written = reached
        if orphans:
            self._let_go(orphans)

    # The stub's private reader and writer, by the names that Python gives them. They are where its format is decided:
    # a list of encoded entities, and at its end the time of the last commit.

    def _DatastoreFileStub__WritePickled(self, entities: Sequence[Any], _filename: str) -> None:
        self._snapshot = entities

    def _DatastoreFileStub__ReadPickled(self, _filename: str) -> list[Any]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            entities, self._held = _read(stream)
        return entities

    def _write_file(self, entities: Sequence[Any], held: Sequence[str]) -> None:
        with replacing(self._path, mode=0o600) as stream:
            _write(stream, entities, held)


def _write(stream: BinaryIO, entities: Sequence[Any], held: Sequence[str]) -> None:
    *encoded, commit_time = entities
    stream.write(_MAGIC)
    stream.write(_HEADER.pack(commit_time, len(encoded)))
    stream.write(_LENGTH.pack(len(held)))
    for transaction in held:
        stream.write(bytes.fromhex(transaction))
    for entity in encoded:
        stream.write(_LENGTH.pack(len(entity)))
        stream.write(entity)


def _read(stream: BinaryIO) -> tuple[list[Any], set[str]]:
    magic = stream.read(len(_MAGIC))
    if magic not in (_MAGIC, _MAGIC_1):
        raise ValueError("it is not in the format of this version")
    commit_time, count = _HEADER.unpack(_exactly(stream, _HEADER.size))
    held: set[str] = set()
    if magic == _MAGIC:
        (held_count,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
        held = {_exactly(stream, _ID_BYTES).hex() for _ in range(held_count)}
    entities: list[Any] = []
    for _ in range(count):
        (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
        entities.append(_exactly(stream, length))
    return [*entities, commit_time], held


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data

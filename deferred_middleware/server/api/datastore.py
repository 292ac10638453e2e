"""The datastore of the local server: the SDK's stub, made safe for several threads and for a sudden end.

The SDK's stub keeps all entities in memory and writes its whole file at each commit. Here, a commit writes what it has
changed to a SQLite file (:mod:`~deferred_middleware.server.api.entity_file`), and commits that wait for each other
share one write.

The SDK's stub enqueues the tasks of a transaction after the commit, and drops the tasks that it can't enqueue. Here, a
commit with tasks has four steps. If the server ends at any of them, the next server finds the entities *and* the tasks,
or neither:

1. The tasks are staged in the task store (:mod:`~deferred_middleware.server.store.transactional`).
2. The entities are committed in memory. If that fails, the staged tasks are discarded.
3. The changes are written. The file lists the transaction among those whose tasks may still be staged.
4. The staged tasks are committed in the task store, and the caller gets its answer.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sqlite3
import struct
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.datastore import datastore_pb, datastore_stub_util
from google.appengine.datastore import entity_bytes_pb2 as entity_pb2
from google.appengine.runtime import apiproxy_errors
from google.protobuf.message import DecodeError

from deferred_middleware.errors import ServerError
from deferred_middleware.server.api.entity_file import EntityFile, StoredEntities
from deferred_middleware.server.api.sdk_datastore import RecordingDatastoreStub, encoded_key
from deferred_middleware.server.store.files import FileGoneError
from deferred_middleware.wire import protocol

logger: Final = logging.getLogger(__name__)

DATASTORE_FILE = "datastore.sqlite"
"""Name of the datastore's file in the data directory."""

# Until there was a SQLite file, this one was written anew at each commit. It is read once, and renamed. It has: the
# magic line; the time of the last commit in the stub's own count; the number of entities; the number of transactions
# whose tasks may be staged, and their IDs; then for each entity its length and its bytes, an EntityProto. Numbers are
# big-endian. Version 1 had no transactions.
_OLD_FILE = "datastore.bin"
_MAGIC = b"deferred_middleware datastore 2\n"
_MAGIC_1 = b"deferred_middleware datastore 1\n"
_HEADER = struct.Struct(">QQ")
_LENGTH = struct.Struct(">I")
_ID_BYTES = 16

_COMMIT_RETRY_SECONDS = 1.0


class TransactionalQueue(Protocol):
    """A store for the tasks of transactions."""

    def stage(self, adds: Sequence[Any], transaction: str) -> None:
        """Store tasks without enqueueing them. ``adds`` are ``TaskQueueAddRequest``; an error fails the commit."""

    def discard(self, transaction: str) -> None:
        """Delete the staged tasks of a transaction that was not committed."""

    def commit(self, transactions: Collection[str]) -> None:
        """Enqueue the staged tasks of committed transactions."""

    def recover(self, committed: Collection[str]) -> None:
        """Enqueue what an earlier server staged for ``committed`` transactions, and discard the rest."""


class DatastoreStub(RecordingDatastoreStub):
    """Answers ``datastore_v3`` for the app ``app_id`` from the file ``path``, which is created if it does not exist.

    Any thread may call it. A call returns after a file write that began after the call's commit. ``queue`` stores the
    tasks of transactions; the constructor has it recover what an earlier server staged. ``on_failure`` is called if
    the file is no longer at its path. Raises :class:`ServerError` if the file can't be read.
    """

    def __init__(
        self,
        app_id: str,
        path: Path,
        queue: TransactionalQueue,
        *,
        on_failure: Callable[[ServerError], object] = lambda _error: None,
    ) -> None:
        self._on_failure = on_failure
        self._path = path
        self._queue = queue
        self._application = app_id
        # The SDK's stub is not made for several threads: its own locks are for transactions. This lock guards the
        # stub itself, and the fields down to _closed.
        self._call_lock = threading.RLock()
        # The tasks that were added in each open transaction, by the transaction's handle.
        self._added: dict[int, list[Any]] = {}
        # Transactions, in memory or in the file, whose tasks may be staged.
        self._staged: set[str] = set()
        # Those of them whose file write failed; the next successful write commits their tasks.
        self._unwritten: set[str] = set()
        self._changes = 0
        self._closed = False
        # Held while the file is written; guards _written, the value of _changes that the file has.
        self._write_lock = threading.Lock()
        self._written = 0
        with contextlib.ExitStack() as opened:
            try:
                old = path.with_name(_OLD_FILE)
                self._file = EntityFile(path, lambda: _old_entities(old))
                opened.callback(self._file.close)
                if old.exists():
                    old.replace(old.with_name(f"{_OLD_FILE}.read"))
                super().__init__(app_id, path, self._load)
            except (apiproxy_errors.Error, DecodeError, ValueError, OSError, sqlite3.Error, ServerError) as error:
                reason = (str(error) or type(error).__name__).strip().splitlines()[0]
                raise ServerError(
                    f"The datastore's file {path} can't be read ({reason}); "
                    "put a copy of it back, or move it away to begin with an empty datastore."
                ) from error
            queue.recover(self._staged)
            self._staged.clear()
            opened.pop_all()

    def MakeSyncCall(self, service: str, call: str, request: Any, response: Any, request_id: str | None = None) -> None:
        """Answer one call; return after its changes are on disk."""
        if call == "AddActions":
            self.CheckRequest(service, call, request)
            self._add_tasks(request.add_request)
            return
        if call == "Commit" and (adds := self._tasks_of(request)):
            self._commit_with_tasks(adds, request, response, request_id)
            return
        with self._call_lock:
            before = self._changes
            super().MakeSyncCall(service, call, request, response, request_id)
            if call == "Rollback":
                self._added.pop(request.handle, None)
            changes = self._changes
        if changes != before:
            self._write_up_to(changes)

    def _add_tasks(self, adds: Sequence[Any]) -> None:
        """Keep tasks until their transaction commits.

        The stub's own list of them is not used, because the stub would enqueue them itself.
        """
        if not adds:
            return
        transaction = _transaction_of(adds[0])
        if any(_transaction_of(add) != transaction for add in adds):
            raise _bad_request("Cannot add requests to different transactions")
        with self._call_lock:
            # Both raise the stub's errors: for a transaction that is not open, or that is read-only.
            self.GetTxn(transaction, False, self._application).AddActions([])
            added = self._added.setdefault(transaction.handle, [])
            if len(added) + len(adds) > protocol.MAX_TASKS_PER_TRANSACTION:
                raise _bad_request(f"Too many messages, maximum allowed {protocol.MAX_TASKS_PER_TRANSACTION}")
            for add in adds:
                copy = taskqueue_pb.TaskQueueAddRequest()
                copy.CopyFrom(add)
                copy.ClearField("transaction")
                copy.ClearField("datastore_transaction")
                added.append(copy)

    def _tasks_of(self, transaction: Any) -> list[Any]:
        with self._call_lock:
            return list(self._added.get(transaction.handle, ()))

    def _commit_with_tasks(self, adds: Sequence[Any], request: Any, response: Any, request_id: str | None) -> None:
        transaction = secrets.token_hex(_ID_BYTES)
        # Outside the lock, so that several transactions share one commit of the task store.
        self._queue.stage(adds, transaction)
        try:
            with self._call_lock:
                self._commit_in_memory(adds, request, response, request_id)
                self._staged.add(transaction)
                # Also if the transaction has no entities: the file must list the transaction.
                self._changes += 1
                changes = self._changes
        except BaseException:
            self._queue.discard(transaction)
            raise
        try:
            self._write_up_to(changes)
        except BaseException:
            # The entities are committed in memory, and the next write has them.
            with self._call_lock:
                self._unwritten.add(transaction)
            raise
        self._commit_tasks({transaction})

    def _commit_in_memory(self, adds: Sequence[Any], request: Any, response: Any, request_id: str | None) -> None:
        if len(self._added.get(request.handle, ())) != len(adds):
            raise _bad_request("a task was added while the transaction was being committed")
        added = self._added.pop(request.handle)
        try:
            super().MakeSyncCall("datastore_v3", "Commit", request, response, request_id)
        except BaseException:
            if self._is_open(request):
                self._added[request.handle] = added
            raise

    def _is_open(self, transaction: Any) -> bool:
        try:
            self.GetTxn(transaction, False, self._application)
        except apiproxy_errors.ApplicationError:
            return False
        return True

    def _commit_tasks(self, transactions: set[str]) -> None:
        """Enqueue the tasks of transactions that are on disk. If that fails, it is tried again, here or at a start."""
        try:
            self._queue.commit(transactions)
        except Exception:
            logger.exception("The tasks of a committed transaction can't be enqueued yet; the server tries again.")
            if self._closed:
                return  # the next start enqueues them
            timer = threading.Timer(_COMMIT_RETRY_SECONDS, self._commit_tasks, [transactions])
            timer.daemon = True
            timer.start()
            return
        with self._call_lock:
            self._staged -= transactions

    def Write(self) -> None:
        """Note that the entities have changed; :meth:`MakeSyncCall` writes the file after the call."""
        self._changes += 1

    def close(self) -> None:
        """Write the changes that are not written yet."""
        with self._call_lock:
            self._closed = True
            self._changes += 1
            changes = self._changes
        try:
            self._write_up_to(changes)
        except apiproxy_errors.ApplicationError as error:
            # What was acknowledged is in the file.
            logger.error("%s", error.error_detail)
        finally:
            self._file.close()

    def _write_up_to(self, changes: int) -> None:
        with self._write_lock:
            if self._written >= changes:
                return
            with self._call_lock:
                reached = self._changes
                changed = self.take_changes()
                commit_time = self.commit_time()
                staged = sorted(self._staged)
                unwritten, self._unwritten = self._unwritten, set()
            try:
                self._write_file(changed, commit_time, staged)
            except BaseException as error:
                with self._call_lock:
                    self._unwritten |= unwritten
                    self.put_back_changes(changed)
                if not isinstance(error, (sqlite3.Error, OSError, ServerError)):
                    raise
                problem = f"the datastore's file {self._path} can't be written: {error}"
                if isinstance(error, FileGoneError):
                    self._on_failure(ServerError(f"{problem}; restart the server."))
                raise apiproxy_errors.ApplicationError(datastore_pb.Error.INTERNAL_ERROR, problem) from error
            self._written = reached
        if unwritten:
            self._commit_tasks(unwritten)

    def _load(self) -> list[Any]:
        stored = self._file.read()
        self._staged = set(stored.staged)
        return [*stored.entities.values(), stored.commit_time] if stored.commit_time else []

    def _write_file(self, changed: Mapping[bytes, bytes | None], commit_time: int, staged: Sequence[str]) -> None:
        self._file.write(changed, commit_time, staged)


def _transaction_of(add: Any) -> Any:
    """Return the ``datastore_v3`` transaction that a task is added in."""
    if not add.HasField("datastore_transaction"):
        return add.transaction
    transaction = datastore_pb.Transaction()
    datastore_stub_util.get_service_converter().v1_to_v3_txn(add.datastore_transaction, transaction)
    return transaction


def _bad_request(problem: str) -> Exception:
    error: Exception = apiproxy_errors.ApplicationError(datastore_pb.Error.BAD_REQUEST, problem)
    return error


def _old_entities(path: Path) -> StoredEntities:
    """Return what an earlier version has stored in ``path``, if it has."""
    if not path.exists():
        return StoredEntities({}, 0, ())
    with path.open("rb") as stream:
        (*entities, commit_time), staged = _read(stream)
    keys = [encoded_key(entity_pb2.EntityProto.FromString(entity).key) for entity in entities]
    return StoredEntities(dict(zip(keys, entities, strict=True)), commit_time, staged)


def _read(stream: BinaryIO) -> tuple[list[Any], set[str]]:
    magic = stream.read(len(_MAGIC))
    if magic not in (_MAGIC, _MAGIC_1):
        raise ValueError("it is not in the format of this version")
    commit_time, count = _HEADER.unpack(_exactly(stream, _HEADER.size))
    staged: set[str] = set()
    if magic == _MAGIC:
        (staged_count,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
        staged = {_exactly(stream, _ID_BYTES).hex() for _ in range(staged_count)}
    entities: list[Any] = []
    for _ in range(count):
        (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
        entities.append(_exactly(stream, length))
    return [*entities, commit_time], staged


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data

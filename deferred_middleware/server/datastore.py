"""The datastore of the local server: the SDK's stub, made fit for several threads and for a sudden end.

The SDK's stub keeps all entities in memory and writes its whole file at each commit, as a pickle that it neither syncs
nor closes when it reads it. Here the commits that wait for one another share one write, the file has a plain format (so
that nothing is unpickled), and it is replaced only by one that is wholly on disk.
"""

from __future__ import annotations

import io
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from google.appengine.api import datastore_file_stub
from google.appengine.datastore import datastore_stub_util
from google.appengine.runtime import apiproxy_errors

from deferred_middleware.errors import ServerError

DATASTORE_FILE = "datastore.bin"
"""Name of the datastore's file in the data directory."""

# The file: this line; the time of the last commit in the stub's own count; the number of entities; then each entity's
# length and its bytes, an EntityProto. Numbers are big-endian.
_MAGIC = b"deferred_middleware datastore 1\n"
_HEADER = struct.Struct(">QQ")
_LENGTH = struct.Struct(">I")


class DatastoreStub(datastore_file_stub.DatastoreFileStub):  # type: ignore[misc] # the SDK has no types
    """Answers ``datastore_v3`` for the app ``app_id`` from the file ``path``, which is made if there is none.

    A call returns when a write that began after its commit has ended. Raises :class:`ServerError` when the file can't
    be read.
    """

    def __init__(self, app_id: str, path: Path) -> None:
        self._path = path
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

    def MakeSyncCall(self, service: str, call: str, request: Any, response: Any, request_id: str | None = None) -> None:
        """Answer one call; return when what it changed is on disk."""
        with self._call_lock:
            before = self._committed
            super().MakeSyncCall(service, call, request, response, request_id)
            committed = self._committed
        if committed != before:
            self._write_up_to(committed)

    def Write(self) -> None:
        """Note that there is something to write; :meth:`MakeSyncCall` writes it once the call is done."""
        self._committed += 1

    def close(self) -> None:
        """Write what is not written yet."""
        with self._call_lock:
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
            self._write_file(snapshot)
            self._written = reached

    # The stub's private reader and writer, by the names that Python gives them. They are where its format is decided:
    # a list of encoded entities, and at its end the time of the last commit.

    def _DatastoreFileStub__WritePickled(self, entities: Sequence[Any], _filename: str) -> None:
        self._snapshot = entities

    def _DatastoreFileStub__ReadPickled(self, _filename: str) -> list[Any]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as stream:
            return _read(stream)

    def _write_file(self, entities: Sequence[Any]) -> None:
        temporary = self._path.with_name(self._path.name + ".new")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            _write(stream, entities)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _write(stream: io.BufferedWriter, entities: Sequence[Any]) -> None:
    *encoded, commit_time = entities
    stream.write(_MAGIC)
    stream.write(_HEADER.pack(commit_time, len(encoded)))
    for entity in encoded:
        stream.write(_LENGTH.pack(len(entity)))
        stream.write(entity)


def _read(stream: BinaryIO) -> list[Any]:
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("it is not in the format of this version")
    commit_time, count = _HEADER.unpack(_exactly(stream, _HEADER.size))
    entities: list[Any] = []
    for _ in range(count):
        (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
        entities.append(_exactly(stream, length))
    return [*entities, commit_time]


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data

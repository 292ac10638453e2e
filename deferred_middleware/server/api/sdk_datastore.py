"""The one module of the local server that relies on private names of the SDK.

The SDK's datastore stub (``google/appengine/api/datastore_file_stub.py``) keeps all entities in memory. Its public
methods ``Read`` and ``Write`` are tied to its own file: a pickle of all entities, which it writes at each commit,
without a sync. The local server needs another file (:mod:`~deferred_middleware.server.api.datastore`), and there is no
public way to hear of changes. The stub also takes the address of an object as the handle of a transaction, so a new
transaction may get the handle of one that has just ended, and a late rollback of that one ends the new one.
:class:`RecordingDatastoreStub` overrides four private methods:

* ``__ReadPickled(filename)`` returns all encoded entities and, as the last item, the time of the last commit;
* ``_StoreRecord(record, insert)`` is called for each entity that is put;
* ``_Delete(key)`` is called for each entity that is deleted;
* ``_RemoveTxn(txn)`` is called at the end of a transaction, which ``_txn_map`` has by its handle.

It also calls ``_GetReadTimestamp()``, the time of the last commit, and ``_ToStorageEntity(record)``, which makes an
entity of the form that ``__ReadPickled`` returns.

``tests/unit/server/api/test_sdk_datastore.py`` fails if a new version of the SDK changes them.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.appengine.api import datastore_file_stub
from google.appengine.datastore import datastore_stub_util

if TYPE_CHECKING:
    # The SDK has no types: what is used of its class.
    class _SdkDatastoreStub:
        _txn_map: dict[Any, Any]

        def __init__(
            self, app_id: str, datastore_file: str, *, use_atexit: bool, consistency_policy: Any, auto_id_policy: str
        ) -> None: ...
        def BeginTransaction(self, *args: Any, **kwargs: Any) -> Any: ...
        def CheckRequest(self, service: str, call: str, request: Any) -> None: ...
        def GetTxn(self, transaction: Any, trusted: bool, calling_app: str) -> Any: ...
        def MakeSyncCall(
            self, service: str, call: str, request: Any, response: Any, request_id: str | None = None
        ) -> None: ...
        def _Delete(self, key: Any) -> None: ...
        def _GetReadTimestamp(self) -> int: ...
        def _StoreRecord(self, record: Any, insert: bool = False) -> None: ...
else:
    _SdkDatastoreStub = datastore_file_stub.DatastoreFileStub


class RecordingDatastoreStub(_SdkDatastoreStub):
    """The SDK's datastore stub for the app ``app_id``, without its own file; it records what changes.

    ``load`` is called once, by the constructor. It returns encoded entities, followed by the time of the last commit in
    the stub's own count. The stub uses ``path`` only in error messages.
    """

    def __init__(self, app_id: str, path: Path, load: Callable[[], list[Any]]) -> None:
        self.__load = load
        self.__changes: dict[bytes, bytes | None] = {}
        # The handles of the open transactions. A later server continues with other handles than an earlier one.
        self.__handles: dict[Any, int] = {}
        self.__next_handle = itertools.count(secrets.randbits(52))
        super().__init__(
            app_id,
            str(path),
            use_atexit=False,
            # As Firestore in Datastore mode: queries see everything that was committed, and IDs are scattered.
            consistency_policy=datastore_stub_util.MasterSlaveConsistencyPolicy(),
            auto_id_policy=datastore_stub_util.SCATTERED,
        )
        self.__changes.clear()

    def Write(self) -> None:
        """Write no file. The stub calls this after each change."""

    def take_changes(self) -> dict[bytes, bytes | None]:
        """Return the encoded entities that have changed since the last call, by :func:`encoded_key`; None if deleted.

        Nothing may change them meanwhile.
        """
        changes, self.__changes = self.__changes, {}
        return changes

    def put_back_changes(self, changes: dict[bytes, bytes | None]) -> None:
        """Take back what :meth:`take_changes` has returned; later changes of the same entities stay."""
        self.__changes = {**changes, **self.__changes}

    def commit_time(self) -> int:
        """Return the time of the last commit in the stub's own count."""
        return self._GetReadTimestamp()

    def BeginTransaction(self, *args: Any, **kwargs: Any) -> Any:
        """Begin a transaction, whose handle is never used again."""
        transaction = super().BeginTransaction(*args, **kwargs)
        txn = self._txn_map.pop(transaction.handle)
        self.__handles[txn] = transaction.handle = next(self.__next_handle)
        self._txn_map[transaction.handle] = txn
        return transaction

    def _RemoveTxn(self, txn: Any) -> None:
        self._txn_map.pop(self.__handles.pop(txn, None), None)

    def _StoreRecord(self, record: Any, insert: bool = False) -> None:
        super()._StoreRecord(record, insert)
        entity = datastore_stub_util._ToStorageEntity(record)
        self.__changes[encoded_key(record.entity.key)] = entity.SerializeToString()

    def _Delete(self, key: Any) -> None:
        super()._Delete(key)
        self.__changes[encoded_key(key)] = None

    def _DatastoreFileStub__ReadPickled(self, _filename: str) -> list[Any]:
        return self.__load()


def encoded_key(key: Any) -> bytes:
    """Return the bytes of a key, always the same ones for the same key."""
    encoded: bytes = key.SerializeToString(deterministic=True)
    return encoded

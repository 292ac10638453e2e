"""The one module of the local server that relies on private names of the SDK.

The SDK's datastore stub (``google/appengine/api/datastore_file_stub.py``) keeps all entities in memory. Its public
methods ``Read`` and ``Write`` are tied to its own file: a pickle, written without a sync. The local server needs
another file (:mod:`~deferred_middleware.server.api.datastore`), and there is no public way to get all encoded entities
out of the stub, or back into it. Two private methods are that boundary, so :class:`SnapshotDatastoreStub` overrides
them:

* ``__WritePickled(entities, filename)`` gets all encoded entities and, as the last item, the time of the last commit;
* ``__ReadPickled(filename)`` returns the same list.

``tests/unit/server/api/test_sdk_datastore.py`` fails if a new version of the SDK changes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.appengine.api import datastore_file_stub
from google.appengine.datastore import datastore_stub_util


class SnapshotDatastoreStub(datastore_file_stub.DatastoreFileStub):  # type: ignore[misc] # the SDK has no types
    """The SDK's datastore stub for the app ``app_id``, without its own file.

    ``load`` is called once, by the constructor. It returns the stub's content as :meth:`take_snapshot` does: the
    encoded entities, followed by the time of the last commit in the stub's own count; or an empty list. The stub uses
    ``path`` only in error messages.
    """

    def __init__(self, app_id: str, path: Path, load: Callable[[], list[Any]]) -> None:
        self.__load = load
        self.__snapshot: Sequence[Any] = ()
        super().__init__(
            app_id,
            str(path),
            use_atexit=False,
            # As Firestore in Datastore mode: queries see everything that was committed, and IDs are scattered.
            consistency_policy=datastore_stub_util.MasterSlaveConsistencyPolicy(),
            auto_id_policy=datastore_stub_util.SCATTERED,
        )

    def take_snapshot(self) -> Sequence[Any]:
        """Return the encoded entities, followed by the time of the last commit. Nothing may change them meanwhile."""
        datastore_file_stub.DatastoreFileStub.Write(self)
        snapshot, self.__snapshot = self.__snapshot, ()
        return snapshot

    def _DatastoreFileStub__WritePickled(self, entities: Sequence[Any], _filename: str) -> None:
        self.__snapshot = entities

    def _DatastoreFileStub__ReadPickled(self, _filename: str) -> list[Any]:
        return self.__load()

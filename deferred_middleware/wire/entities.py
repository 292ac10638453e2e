"""The entities that we keep in the datastore, and the datastore that keeps them: the SDK's, or google-cloud-ndb's.

Both lead to the same entities. The SDK's is used where its API answers. google-cloud-ndb's is used inside one of its
contexts, and in a process that does without the SDK. Importing this module imports neither.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Final, Protocol

from deferred_middleware.errors.sdk_types import HAS_SDK

Path = tuple[Any, ...]
"""A key: kind, and name or number, for each entity from the root on. The namespace is the default one."""

BLOB: Final = "blob"
DATE: Final = "date"
INTEGER: Final = "integer"
NAME: Final = "name"
TEXT: Final = "text"

SCHEMAS: Final[Mapping[str, Mapping[str, str]]] = {
    "_DeferredPayload": {"expires": DATE, "data": BLOB, "retry_count": INTEGER},
    "_DeferredOutbox": {"parent": BLOB, "task": BLOB, "created": DATE, "reported": DATE},
    # The SDK's own outbox (SDK: api/taskqueue/cloudtask_transactional.py).
    "_AE_PendingCloudTask": {
        "queue_name": NAME,
        "cloud_task_name": NAME,
        "cloud_task_payload": TEXT,
        "payload": TEXT,
        "created": DATE,
        "status": NAME,
    },
}
"""The properties of each kind, and the type of each property. Dates, numbers and names are indexed."""

_CLOUD_CONTEXT: Final = "google.cloud.ndb.context"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoredEntity:
    """An entity. Dates are in UTC, without a time zone. A property that is missing is None in the datastore."""

    path: Path
    properties: Mapping[str, bytes | datetime.datetime | int | str]


class Datastore(Protocol):
    """A datastore. Its methods raise the exceptions of its client."""

    def get(self, paths: Sequence[Path]) -> list[StoredEntity | None]:
        """Return the entities with these keys, read outside of any transaction."""

    def put(self, entities: Sequence[StoredEntity], *, in_transaction: bool = False) -> None:
        """Write entities, in the current transaction or outside of any."""

    def delete(self, paths: Sequence[Path], *, in_transaction: bool = False) -> None:
        """Delete entities, in the current transaction or outside of any."""

    def older_than(
        self, kind: str, date: str, time: datetime.datetime, *, limit: int, keys_only: bool = False
    ) -> list[StoredEntity]:
        """Return up to ``limit`` entities whose property ``date`` is before ``time``, the oldest first."""


def in_cloud_transaction() -> bool:
    """Tell whether a transaction of google-cloud-ndb surrounds the caller."""
    context = cloud_context()
    return context is not None and bool(context.in_transaction())


def in_sdk_transaction() -> bool:
    """Tell whether a transaction of the SDK's ndb or db surrounds the caller.

    Both make the transaction's connection the current one while the transaction's function runs, and ndb follows its
    tasklets with it (SDK: ``ext/ndb/tasklets.py``).
    """
    if not HAS_SDK:
        return False
    from google.appengine.api import datastore

    return bool(datastore.IsInTransaction())


def in_transaction() -> bool:
    """Tell whether a transaction surrounds the caller."""
    return in_sdk_transaction() or in_cloud_transaction()


def is_available() -> bool:
    """Tell whether there is a datastore in this process."""
    return (HAS_SDK and _has_sdk_api()) or cloud_context() is not None or (not HAS_SDK and is_cloud_installed())


def datastore() -> Datastore:
    """Return the datastore of the current transaction, or that of the process.

    Raises :class:`ImportError` if google-cloud-ndb is needed and not installed.
    """
    if in_cloud_transaction():
        return _cloud()
    if in_sdk_transaction():
        return _sdk()
    if cloud_context() is not None or not HAS_SDK:
        return _cloud()
    return _sdk()


def is_cloud_installed() -> bool:
    """Tell whether google-cloud-ndb can be imported."""
    if _CLOUD_CONTEXT in sys.modules:
        return True
    try:
        return importlib.util.find_spec("google.cloud.ndb") is not None
    except ImportError:
        return False


def cloud_context() -> Any:
    """Return google-cloud-ndb's current context; None if there is none, or if the app has not imported it."""
    module = sys.modules.get(_CLOUD_CONTEXT)
    return None if module is None else module.get_context(False)


def _has_sdk_api() -> bool:
    from google.appengine.api import apiproxy_stub_map

    return apiproxy_stub_map.apiproxy.GetStub("datastore_v3") is not None


def _sdk() -> Datastore:
    from deferred_middleware.wire import sdk_entities

    return _as_datastore(sdk_entities)


def _cloud() -> Datastore:
    from deferred_middleware.wire import cloud_entities

    return _as_datastore(cloud_entities)


def _as_datastore(module: ModuleType) -> Datastore:
    """Return a module with the functions of a :class:`Datastore` as one."""
    found: Any = module
    return found  # type: ignore[no-any-return] # a module

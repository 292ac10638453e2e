"""The datastore namespace of a task: the one that is current at ``defer()`` is current again when the call runs.

The SDK sends the namespace as ``X-AppEngine-Current-Namespace``, but Cloud Tasks drops every header with that prefix
(SDK: ``api/taskqueue/cloudtask.py``, _build_ct_task_payload). So we send a header of our own with every engine. It is
sent for the default namespace too: otherwise an app whose middleware chooses a namespace for each request, for example
from its host, would run such a task in the namespace that it chose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.errors import PayloadError, sdk_types
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_NAMESPACE: Final = protocol.environ_key(protocol.NAMESPACE_HEADER)
_SDK_NAMESPACE: Final = protocol.environ_key(protocol.CURRENT_NAMESPACE_HEADER)


manager: Any = None
"""The namespace manager, after :func:`header_value` or :func:`enter` has imported it."""


def header_value() -> str:
    """Return the value of the header :data:`~deferred_middleware.wire.protocol.NAMESPACE_HEADER` for this moment."""
    return (manager or _import_manager()).get_namespace() or protocol.DEFAULT_NAMESPACE


def enter(environ: WSGIEnvironment) -> str | None:
    """Make the namespace in which the task of ``environ`` was deferred current; return the one that was current before.

    A task of the older libraries has the namespace in the SDK's header. If neither header is there, the namespace stays
    as it is, and None is returned. Raises :class:`~deferred_middleware.errors.PayloadError` if the header's value is
    not a namespace.
    """
    namespace = environ.get(_NAMESPACE)
    if namespace is None:
        namespace = environ.get(_SDK_NAMESPACE)
        if namespace is None:
            return None
    if namespace == protocol.DEFAULT_NAMESPACE:
        namespace = ""
    sdk = manager or _import_manager()
    before: str = sdk.get_namespace()
    if before != namespace:
        try:
            sdk.set_namespace(namespace)
        except sdk.BadValueError as error:
            raise PayloadError(f"the task's namespace is invalid: {error}") from error
    return before


@contextlib.contextmanager
def restored(environ: WSGIEnvironment) -> Iterator[None]:
    """Run a ``with`` block in the namespace in which the task of ``environ`` was deferred; see :func:`enter`."""
    before = enter(environ)
    try:
        yield
    finally:
        if before is not None:
            manager.set_namespace(before)


def _import_manager() -> Any:
    """Return the SDK's namespace manager, or in a process without the SDK that of google-cloud-ndb's contexts."""
    global manager
    if sdk_types.HAS_SDK:
        from google.appengine.api import namespace_manager

        manager = namespace_manager
    else:
        from deferred_middleware.wire import cloud_namespace

        manager = cloud_namespace
    return manager

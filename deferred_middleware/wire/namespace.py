"""The datastore namespace of a task: the one that is current at ``defer()`` is current again when the call runs.

The SDK sends the namespace as ``X-AppEngine-Current-Namespace``, but Cloud Tasks drops every header with that prefix
(SDK: ``api/taskqueue/cloudtask.py``, _build_ct_task_payload). So we send a header of our own with every engine. It is
sent for the default namespace too: otherwise an app whose middleware chooses a namespace for each request, for example
from its host, would run such a task in the namespace that it chose.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.errors import PayloadError
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_NAMESPACE: Final = protocol.environ_key(protocol.NAMESPACE_HEADER)
_SDK_NAMESPACE: Final = protocol.environ_key(protocol.CURRENT_NAMESPACE_HEADER)


def header_value() -> str:
    """Return the value of the header :data:`~deferred_middleware.wire.protocol.NAMESPACE_HEADER` for this moment."""
    return (_manager or _import_manager()).get_namespace() or protocol.DEFAULT_NAMESPACE


def enter(environ: WSGIEnvironment) -> Callable[[], object] | None:
    """Make the namespace in which the task of ``environ`` was deferred current; return a function that undoes this.

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
    manager = _manager or _import_manager()
    before: str = manager.get_namespace()
    if before != namespace:
        try:
            manager.set_namespace(namespace)
        except manager.BadValueError as error:
            raise PayloadError(f"the task's namespace is invalid: {error}") from error
    return functools.partial(manager.set_namespace, before)


@contextlib.contextmanager
def restored(environ: WSGIEnvironment) -> Iterator[None]:
    """Run a ``with`` block in the namespace in which the task of ``environ`` was deferred; see :func:`enter`."""
    leave = enter(environ)
    try:
        yield
    finally:
        if leave is not None:
            leave()


_manager: Any = None
"""The SDK's namespace manager, which is imported when a task first needs it."""


def _import_manager() -> Any:
    """Return the SDK's namespace manager."""
    global _manager
    from google.appengine.api import namespace_manager

    _manager = namespace_manager
    return _manager

"""The datastore's namespace travels with a task: what was current at ``defer()`` is current when the call runs.

The SDK sends it as ``X-AppEngine-Current-Namespace``, and Cloud Tasks drops every header of that kind (SDK:
``api/taskqueue/cloudtask.py``, _build_ct_task_payload). Ours is a header of our own, on every engine alike, and set for
the default namespace too: an app whose middleware chooses a namespace for each request, from its host for one, would
otherwise run such a task in whatever namespace that finds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.errors import PayloadError
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

_NAMESPACE: Final = protocol.environ_key(protocol.NAMESPACE_HEADER)
_SDK_NAMESPACE: Final = protocol.environ_key(protocol.CURRENT_NAMESPACE_HEADER)


def header_value() -> str:
    """Return what :data:`~deferred_middleware.wire.protocol.NAMESPACE_HEADER` says of the current namespace."""
    return (_sdk or _manager()).get_namespace() or protocol.DEFAULT_NAMESPACE


def enter(environ: WSGIEnvironment) -> str | None:
    """Make the namespace in which the task of ``environ`` was deferred the current one.

    A task of the older libraries says it in the SDK's header; where neither is there, nothing changes. Returns what
    :func:`leave` needs; raises :class:`~deferred_middleware.errors.PayloadError` if the header holds no namespace.
    """
    named = environ.get(_NAMESPACE)
    if named is None:
        named = environ.get(_SDK_NAMESPACE)
        if named is None:
            return None
    if named == protocol.DEFAULT_NAMESPACE:
        named = ""
    manager = _sdk or _manager()
    before: str = manager.get_namespace()
    if before != named:
        try:
            manager.set_namespace(named)
        except manager.BadValueError as error:
            raise PayloadError(f"the task's namespace can't be one: {error}") from error
    return before


def leave(before: str | None) -> None:
    """Make the namespace current again that was so before :func:`enter`."""
    if before is not None and _sdk.get_namespace() != before:  # the call may have changed it
        _sdk.set_namespace(before)


@contextlib.contextmanager
def restored(environ: WSGIEnvironment) -> Iterator[None]:
    """Be in the namespace in which the task of ``environ`` was deferred, in a ``with`` statement; see :func:`enter`."""
    before = enter(environ)
    try:
        yield
    finally:
        leave(before)


_sdk: Any = None
"""The SDK's namespace manager, which is not imported before a task needs it."""


def _manager() -> Any:
    """Return the SDK's namespace manager."""
    global _sdk
    from google.appengine.api import namespace_manager

    _sdk = namespace_manager
    return _sdk

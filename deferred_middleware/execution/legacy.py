"""Calls that ``google.appengine.ext.deferred`` enqueued: tasks that are in flight when an app migrates still run.

That library pickles ``(callable, args, kwargs)`` as we do, with two exceptions. For a bound method, it pickles a
function of its own with the object and the method's name. For a payload that does not fit in a task, it pickles a
function with the key of a datastore entity. This module reads both, because the library's own functions drop a call
for good if the entity can't be read or unpickled (SDK: ``ext/deferred/deferred.py``, ``run`` and
``run_from_datastore``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deferred_middleware.calls import allowlist, payload
from deferred_middleware.calls.call import Call, Content
from deferred_middleware.calls.callables import label_text
from deferred_middleware.errors import CallableNotFoundError, PayloadError, TaskContentError
from deferred_middleware.errors.text import text_of

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings


def resolved(content: Content, settings: Settings) -> tuple[Content, str]:
    """Return the call that an older library has pickled as ``content``, and the call's label.

    Raises :class:`~deferred_middleware.errors.TaskContentError` if the call can't be read here, or not yet.
    """
    try:
        return _resolved(content, settings)
    except (TaskContentError, KeyboardInterrupt):
        raise
    except BaseException as error:
        # The arguments of the library's functions can be anything, a property of the object may raise anything, and the
        # datastore may fail.
        raise PayloadError(
            f"the older library's call can't be read: {type(error).__name__}: {text_of(error)}"
        ) from error


def _resolved(content: Content, settings: Settings) -> tuple[Content, str]:
    func, args, _ = content
    if allowlist.legacy_wrapper_name(func) == "run_from_datastore":
        stored, label = _unbound(payload.content_of(_stored(args[0]), settings, legacy=True), settings)
        return (_StoredCall(stored, args[0]), (), {}), label
    return _unbound(content, settings)


def _unbound(content: Content, settings: Settings) -> tuple[Content, str]:
    func, args, kwargs = content
    if allowlist.legacy_wrapper_name(func) == "invoke_member":
        owner, member, *rest = args
        try:
            func = getattr(owner, member)
        except AttributeError as error:
            raise CallableNotFoundError(
                f"this version of the app lacks something that the task needs: {text_of(error)}"
            ) from error
        if not callable(func):
            raise PayloadError(f"the attribute {member!r} of a {type(owner).__name__} can't be called")
        if settings.allowed_callables:
            allowlist.check_callable(func, settings.allowed_callables)
        args = tuple(rest)
    return (func, args, kwargs), label_text(func)


def _stored(key: str) -> bytes:
    """Return the payload in the entity with this key."""
    from google.appengine.ext import db
    from google.appengine.ext.deferred import deferred  # noqa: F401 - it defines the entity's model

    entity = db.get(key)
    if entity is None:
        # The entity may not be committed yet: that library stores it outside of the task's transaction.
        raise PayloadError(f"the datastore has no payload under the key {key}")
    return bytes(entity.data)


class _StoredCall:
    """Runs a call, and deletes the datastore entity that holds it when it has succeeded or failed for good."""

    def __init__(self, content: Content, key: str) -> None:
        self._content = content
        self._key = key

    def __call__(self) -> Any:
        from google.appengine.ext import db, deferred

        try:
            result = Call.of(self._content).run()
        except deferred.PermanentTaskFailure:
            db.delete(self._key)
            raise
        db.delete(self._key)
        return result

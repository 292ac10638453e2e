"""Calls as the older libraries enqueued them, so that what is in flight at a migration runs.

``google.appengine.ext.deferred`` pickles ``(callable, args, kwargs)`` as we do, but a bound method as a function of its
own with the object and the method's name, and a payload that does not fit in a task as a function with the key of a
datastore entity. Both are undone here, because that library drops a call for good whenever the entity can't be read or
unpickled (SDK: ``ext/deferred/deferred.py``, ``run`` and ``run_from_datastore``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.calls import allowlist, payload
from deferred_middleware.calls.call import Call, Content
from deferred_middleware.calls.callables import AnyCallable, label_text
from deferred_middleware.errors import CallableNotFoundError, PayloadError

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings

_MODULE: Final = "google.appengine.ext.deferred.deferred"


def resolved(content: Content, settings: Settings) -> tuple[Content, str]:
    """Return the call that an older library meant by ``content``, and its label for people.

    Raises :class:`~deferred_middleware.errors.TaskContentError` when it can't be had here, or not now.
    """
    func, args, _ = content
    if _name(func) == "run_from_datastore":
        stored, label = _unbound(payload.content_of(_stored(args[0]), settings, legacy=True), settings)
        return (_Kept(stored, args[0]), (), {}), label
    return _unbound(content, settings)


def _name(func: AnyCallable) -> str | None:
    return getattr(func, "__name__", None) if getattr(func, "__module__", None) == _MODULE else None


def _unbound(content: Content, settings: Settings) -> tuple[Content, str]:
    func, args, kwargs = content
    if _name(func) == "invoke_member":
        owner, member, *rest = args
        try:
            func = getattr(owner, member)
        except AttributeError as error:
            raise CallableNotFoundError(f"this version of the app lacks what the task needs: {error}") from error
        if settings.allowed_callables:
            allowlist.check_callable(func, settings.allowed_callables)
        args = tuple(rest)
    return (func, args, kwargs), label_text(func)


def _stored(key: str) -> bytes:
    """Return the payload in the entity with this key."""
    from google.appengine.ext import deferred

    entity = deferred.deferred._DeferredTaskEntity.get(key)
    if entity is None:
        # It may not be committed yet: that library stores it outside of the task's transaction.
        raise PayloadError(f"the datastore has no payload under the key {key}")
    return bytes(entity.data)


class _Kept:
    """Runs a call, and deletes the entity that holds it once it is done with."""

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

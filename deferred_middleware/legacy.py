"""Calls as the older libraries enqueued them, so that what is in flight at a migration runs.

``google.appengine.ext.deferred`` pickles ``(callable, args, kwargs)`` as we do, but a bound method as a function of its
own with the object and the method's name, and a payload that does not fit in a task as a function with the key of a
datastore entity. Both are undone here, because that library drops a call for good whenever the entity can't be read or
unpickled (SDK: ``ext/deferred/deferred.py``, ``run`` and ``run_from_datastore``).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware import allowing, payload
from deferred_middleware.calls import Call
from deferred_middleware.errors import CallableNotFoundError, PayloadError

if TYPE_CHECKING:
    from deferred_middleware.settings import Settings

_MODULE: Final = "google.appengine.ext.deferred.deferred"


def resolved(call: Call, settings: Settings) -> tuple[Call, str]:
    """Return the call that an older library meant by ``call``, and its label for people.

    Raises :class:`~deferred_middleware.errors.TaskContentError` when it can't be had here, or not now.
    """
    name = _name(call)
    if name == "run_from_datastore":
        key = call.args[0]
        stored, label = _unbound(payload.loads(_stored(key), settings, legacy=True), settings)
        return dataclasses.replace(stored, func=_Kept(stored, key), args=(), kwargs={}), label
    return _unbound(call, settings)


def _name(call: Call) -> str | None:
    func = call.func
    return getattr(func, "__name__", None) if getattr(func, "__module__", None) == _MODULE else None


def _unbound(call: Call, settings: Settings) -> tuple[Call, str]:
    if _name(call) == "invoke_member":
        owner, member, *args = call.args
        try:
            method = getattr(owner, member)
        except AttributeError as error:
            raise CallableNotFoundError(f"this version of the app lacks what the task needs: {error}") from error
        call = dataclasses.replace(call, func=method, args=tuple(args))
        if settings.allowed_callables:
            allowing.check_callable(method, settings.allowed_callables)
    return call, str(call.label)


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

    def __init__(self, call: Call, key: str) -> None:
        self._call = call
        self._key = key

    def __call__(self) -> Any:
        from google.appengine.ext import db, deferred

        try:
            result = self._call.run()
        except deferred.PermanentTaskFailure:
            db.delete(self._key)
            raise
        db.delete(self._key)
        return result

"""The namespace of google-cloud-ndb's current context, with the names of the SDK's ``namespace_manager``.

A namespace counts only if a context sets it (``client.context(namespace=…)``). That of the client is the same in each
process of the app. Importing this module imports nothing of google-cloud-ndb: an app that uses it has imported it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import Any, Final

_CONTEXT_MODULE: Final = "google.cloud.ndb.context"
_KEY_MODULE: Final = "google.cloud.ndb.key"


class BadValueError(ValueError):
    """The namespace can't be made the current one."""


class _Entered(threading.local):
    """The contexts that :func:`set_namespace` has entered in this thread, with the namespace before each."""

    def __init__(self) -> None:
        self.stack: list[tuple[str, contextlib.AbstractContextManager[Any]]] = []


_entered: Final = _Entered()


def get_namespace() -> str:
    """Return the namespace that the current context sets; empty if it sets none, or if there is no context."""
    context = _context()
    return "" if context is None else _namespace_of(context)


def set_namespace(namespace: str) -> None:
    """Enter a context that is like the current one but for its namespace, or leave the one that was entered last.

    Raises :class:`BadValueError` if there is no context.
    """
    if get_namespace() == namespace:
        return
    stack = _entered.stack
    if stack and stack[-1][0] == namespace:
        stack.pop()[1].__exit__(None, None, None)
        return
    context = _context()
    if context is None:
        raise BadValueError(
            f"there is no context of google-cloud-ndb in which {namespace!r} could be the namespace. Enter one around "
            "DeferredMiddleware: write a WSGI layer that runs the app inside `with client.context():`"
        )
    # An empty namespace stands for that of the client.
    entering = context.new(namespace=namespace or sys.modules[_KEY_MODULE].UNDEFINED).use()
    entering.__enter__()
    stack.append((_namespace_of(context), entering))


def _namespace_of(context: Any) -> str:
    undefined = sys.modules[_KEY_MODULE].UNDEFINED
    return "" if context.namespace is undefined else str(context.namespace or "")


def _context() -> Any:
    module = sys.modules.get(_CONTEXT_MODULE)
    return None if module is None else module.get_context(False)

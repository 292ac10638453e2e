"""Which callables a task may call, where ``DEFERRED_ALLOWED_CALLABLES`` says it.

A payload is looked through before it is loaded, without importing anything of it: its callable has to be one that a
walk over the pickle's opcodes finds in the list by its name. After loading, the object that came of it is looked up in
the list once more, because only then is it known what a module holds under a name.

What a payload may have in the callable's place, and the name that has to be in the list:

* a name, as of a function, a class or a static method: that name;
* ``getattr(class, "method")``: the class's name and the method's, as in ``shop:Order.close``;
* ``getattr(object, "method")``: the same with the object's own class, where it is that class's ``__new__`` that makes
  the object;
* such an object itself, which is then called: its class's name;
* ``functools.partial`` of one of these: that one's.

Anything else isn't a call that ``defer()`` writes, and is refused whatever it would turn out to be.
"""

from __future__ import annotations

import functools
import sys
from typing import Final

from deferred_middleware.calls.callables import AnyCallable, agrees, label_of
from deferred_middleware.errors import NotAllowedError
from deferred_middleware.wire.pickle_tree import Group, Made, Name, Node, Value, sketch

OWN_FUNCTIONS: Final = "*"
"""Stands in an entry for the functions that its module defines itself."""

_MAX_OPCODES: Final = 1_000_000
_MAX_DEPTH: Final = 20
_GETATTR: Final = "builtins.getattr"
_PARTIAL: Final = "functools.partial"
# What objects are made by that have no __reduce__ of their own, before protocol 2.
_MAKES_NEW: Final = "copyreg._reconstructor"
_LEGACY: Final = "google.appengine.ext.deferred.deferred"


def check_payload(data: bytes, allowed: tuple[str, ...], *, legacy: bool) -> None:
    """Raise :class:`NotAllowedError` unless the callable in a pickled call is in the list.

    With ``legacy`` the functions are let through in which ``google.appengine.ext.deferred`` wraps a bound method or
    the key of a payload: a method has to be in the list, and what is under the key is yet to be checked.
    """
    drawn = sketch(data, _MAX_OPCODES)
    call = drawn.node
    if call is None:
        raise _unknown(drawn.problem or "")
    if not (isinstance(call, Group) and call.kind == "tuple" and len(call.items) == 3):
        raise _unknown("it is no (callable, args, kwargs)")
    func, args = call.items[:2]
    found = _name_of(func, _MAX_DEPTH)
    if found is None:
        raise _unknown("its callable is neither a name nor what pickle makes of a method, a partial or a plain object")
    if legacy and found.module == _LEGACY and isinstance(func, Name):
        if found.qualname == "run_from_datastore":
            return
        if found.qualname == "invoke_member" and isinstance(args, Group) and args.kind == "tuple":
            found = _attribute(args.items[:2], _MAX_DEPTH) or found
    entry = f"{found.module}:{found.qualname}"
    own = f"{found.module}:{OWN_FUNCTIONS}"
    if entry not in allowed and (own not in allowed or not found.qualname.isidentifier()):
        raise _refused(entry)


def check_callable(func: AnyCallable, allowed: tuple[str, ...]) -> None:
    """Raise :class:`NotAllowedError` unless ``func`` is what the list names."""
    label = label_of(func)
    if f"{label.module}:{label.qualname}" in allowed:
        return
    for entry in allowed:
        module, _, qualname = entry.partition(":")
        if _is_own_function(func, module) if qualname == OWN_FUNCTIONS else agrees(module, qualname, func):
            return
    raise _refused(f"{label.module}:{label.qualname}")


def is_legacy_wrapper(func: AnyCallable) -> bool:
    """Tell whether ``func`` is one of those that ``legacy`` lets through."""
    return getattr(func, "__module__", None) == _LEGACY and getattr(func, "__name__", None) in (
        "invoke_member",
        "run_from_datastore",
    )


def _is_own_function(func: AnyCallable, module: str) -> bool:
    while type(func) is functools.partial:
        func = func.func
    if isinstance(func, type) or getattr(func, "__module__", None) != module or module not in sys.modules:
        return False
    return vars(sys.modules[module]).get(getattr(func, "__name__", "")) is func


def _name_of(node: Node, depth: int) -> Name | None:
    """Return the name by which a callable is listed; None if that can't be told."""
    while isinstance(node, Made) and str(node.maker) == _PARTIAL:
        # What the state has is what is called; pickle writes the same object in both places.
        parts = _items(node.arguments), _items(node.state)
        if parts[0] is None or parts[1] is None or node.items or node.by_new:
            return None
        if len(parts[0]) != 1 or len(parts[1]) != 4 or parts[0][0] is not parts[1][0]:
            return None
        node = parts[0][0]
    if isinstance(node, Name):
        return node
    if not isinstance(node, Made):
        return None
    if str(node.maker) == _GETATTR:
        arguments = _items(node.arguments)
        return None if arguments is None or not _is_plain(node) else _attribute(arguments, depth)
    return _class_of(node, depth)


def _attribute(arguments: list[Node], depth: int) -> Name | None:
    """Return the name of what ``getattr`` returns for ``arguments``."""
    if len(arguments) != 2 or depth == 0:
        return None
    owner, attribute = arguments
    if not (isinstance(attribute, Value) and isinstance(attribute.value, str) and attribute.value.isidentifier()):
        return None
    holder = _class_of(owner, depth - 1) if isinstance(owner, Made) else owner
    if isinstance(owner, Made) and str(owner.maker) == _GETATTR:
        # A class in a class, before protocol 4.
        holder = _name_of(owner, depth - 1)
    return Name(holder.module, f"{holder.qualname}.{attribute.value}") if isinstance(holder, Name) else None


def _class_of(made: Made, depth: int) -> Name | None:
    """Return the name of an object's class, where it is by that class's ``__new__`` that it is made."""
    cls: Node | None = made.maker
    if not made.by_new:
        arguments = _items(made.arguments)
        if str(made.maker) != _MAKES_NEW or not arguments:
            return None
        cls = arguments[0]
    if isinstance(cls, Made):
        cls = _name_of(cls, depth - 1) if depth and str(cls.maker) == _GETATTR else None
    return cls if isinstance(cls, Name) else None


def _items(node: Node | None) -> list[Node] | None:
    return node.items if isinstance(node, Group) and node.kind == "tuple" else None


def _is_plain(made: Made) -> bool:
    return made.state is None and not made.items and not made.by_new


def _refused(entry: str) -> NotAllowedError:
    return NotAllowedError(
        entry.replace(":", "/", 1),
        f"{entry} may not be called by a task: it is not in DEFERRED_ALLOWED_CALLABLES. Add it there, in the version "
        "that runs the task as well, or defer what is there.",
    )


def _unknown(why: str) -> NotAllowedError:
    return NotAllowedError(
        "a payload",
        f"the payload may not be loaded: its callable can't be looked up in DEFERRED_ALLOWED_CALLABLES, because {why}. "
        "Defer a function or a method, and give the rest as its arguments.",
    )

"""Check that a task calls only what ``DEFERRED_ALLOWED_CALLABLES`` lists.

There are two checks. Before a payload is loaded, its opcodes are read without importing anything, and the name of the
callable has to be in the list. After it is loaded, the callable itself is looked up in the list, because only then is
it known which object a module has under a name.

A payload may have these in the callable's place. The list has to have:

* for the name of a function, a class or a static method: that name;
* for ``getattr(class, "method")``: the name of the class and the method, such as ``shop:Order.close``;
* for ``getattr(object, "method")``: the same with the object's class, if the ``__new__`` of that class makes the
  object;
* for such an object itself, which is then called: the name of its class;
* for a ``functools.partial`` of one of these: the same as for what it wraps;
* for a task of Django's: the name of its function.

``defer()`` writes nothing else, so anything else is refused.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from typing import Any, Final

from deferred_middleware.calls.callables import AnyCallable, asked, is_proxy, label_of
from deferred_middleware.errors import NotAllowedError
from deferred_middleware.wire.pickle_tree import (
    DJANGO_TASK_LOADER,
    Group,
    Made,
    Name,
    Node,
    Value,
    django_task_name,
    sketch,
)

OWN_FUNCTIONS: Final = "*"
"""Stands in an entry of the list for all functions that the module defines itself."""

_MAX_OPCODES: Final = 1_000_000
_MAX_DEPTH: Final = 20
_GETATTR: Final = "builtins.getattr"
_PARTIAL: Final = "functools.partial"
# The function that makes objects without a __reduce__ of their own, before protocol 2.
_MAKES_NEW: Final = "copyreg._reconstructor"
_NOTHING: Final = object()
_DECORATOR: Final = "deferred_middleware.enqueue.decorator"
_DESCRIPTORS: Final = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)
_BOUND_BUILTINS: Final = (types.BuiltinMethodType, types.MethodWrapperType)
_DJANGO_BACKEND: Final = DJANGO_TASK_LOADER.rpartition(".")[0]
_LEGACY: Final = "google.appengine.ext.deferred.deferred"


def check_payload(data: bytes, allowed: tuple[str, ...], *, legacy: bool) -> None:
    """Raise :class:`NotAllowedError` unless the callable in a pickled call is in the list.

    If ``legacy`` is true, the functions with which ``google.appengine.ext.deferred`` wraps a bound method or the key of
    a payload are accepted. A wrapped method has to be in the list. The payload under a key is checked later.
    """
    drawn = sketch(data, _MAX_OPCODES)
    call = drawn.node
    if call is None:
        raise _unknown(drawn.problem or "")
    if not (isinstance(call, Group) and call.kind == "tuple" and len(call.items) == 3):
        raise _unknown("it is not a (callable, args, kwargs)")
    func, args = call.items[:2]
    found = _name_of(func, _MAX_DEPTH)
    if found is None:
        raise _unknown("its callable is not a name, a method, a partial or a plain object")
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
    """Raise :class:`NotAllowedError` unless the list names ``func``."""
    func = _in_django_call(func)
    for entry in allowed:
        module, _, qualname = entry.partition(":")
        if _is_own_function(func, module) if qualname == OWN_FUNCTIONS else _holds(module, qualname, func):
            return
    label = label_of(func)
    raise _refused(f"{label.module}:{label.qualname}")


def is_legacy_wrapper(func: AnyCallable) -> bool:
    """Tell whether ``func`` is one of the functions that are accepted if ``legacy`` is true."""
    return legacy_wrapper_name(func) is not None


def legacy_wrapper_name(func: object) -> str | None:
    """Return the name of the function of ``google.appengine.ext.deferred`` that ``func`` is; None if it is another."""
    module = sys.modules.get(_LEGACY)
    if module is None or type(func) is not types.FunctionType:
        return None
    held = vars(module)
    return next((name for name in ("invoke_member", "run_from_datastore") if held.get(name) is func), None)


def _is_own_function(func: AnyCallable, module: str) -> bool:
    func = _without_partials(func)
    if isinstance(func, type) or module not in sys.modules:
        return False
    held = vars(sys.modules[module])
    if getattr(func, "__module__", None) != module:
        return False
    # An object that is callable has no name of its own, unless it is a decorated function.
    return hasattr(func, "__name__") and any(_in_django_task(value) is func for value in held.values())


def _in_django_call(func: AnyCallable) -> AnyCallable:
    """Return the function of the Django task that ``func`` runs; any other ``func`` as it is."""
    backend = sys.modules.get(_DJANGO_BACKEND)
    is_call = backend is not None and type(func) is vars(backend).get("TaskCall")
    return func.task.func if is_call else func  # type: ignore[attr-defined] # a TaskCall


def _in_django_task(held: Any) -> Any:
    """Return the function of the Django task that a module holds; any other object as it is."""
    tasks = sys.modules.get("django.tasks.base")
    return held.func if tasks is not None and issubclass(type(held), tasks.Task) else held


def _without_partials(func: AnyCallable) -> AnyCallable:
    # A subclass of partial may call something else than what it holds.
    while type(func) is functools.partial:
        func = func.func
    return func


def _holds(module: str, qualname: str, func: AnyCallable) -> bool:
    """Tell whether ``func``, or the class of the object ``func``, is what a loaded module has under this name.

    What ``func`` says about itself (``__module__``, ``__qualname__``, ``__name__``) does not count, because the payload
    may have set it.
    """
    func = _without_partials(func)
    found: Any = sys.modules.get(module)
    holder: Any = None
    if found is None:
        return False
    for number, part in enumerate(qualname.split(".")):
        holder = found
        # A module may have a __getattr__. On a class, the attribute itself is needed, not what it binds to.
        found = getattr(found, part, _NOTHING) if number == 0 else inspect.getattr_static(found, part, _NOTHING)
        if found is _NOTHING:
            return False
    found = _in_django_task(found)
    if is_proxy(func) and isinstance(holder, type):
        return found is func or _binds_to(found, holder, func)
    if isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    if found is func or found is type(func):
        return True
    body = func.__func__ if isinstance(func, types.MethodType) else func
    if type(found).__module__ == _DECORATOR:
        found = getattr(found, "__wrapped__", _NOTHING)  # the object that @task puts in the place of a method
    if found is body:
        return True
    if isinstance(found, _DESCRIPTORS) and isinstance(func, _BOUND_BUILTINS):
        owner = func.__self__
        is_class_method = isinstance(found, types.ClassMethodDescriptorType)
        cls = owner if isinstance(owner, type) and is_class_method else type(owner)
        if issubclass(cls, found.__objclass__):
            bound: object = found.__get__(None, cls) if is_class_method else found.__get__(owner, cls)
            return bool(bound == func)
    return False


def _binds_to(found: Any, holder: type, proxy: AnyCallable) -> bool:
    """Tell whether ``proxy`` is what the attribute ``found`` of the class ``holder`` makes for each access."""
    owner = asked(proxy, "__self__") if isinstance(proxy, types.MethodType) else holder
    cls = owner if isinstance(owner, type) else type(owner)
    if not issubclass(cls, holder) or inspect.getattr_static(type(found), "__get__", None) is None:
        return False
    bound = found.__get__(None if owner is cls else owner, cls)
    if bound is proxy:
        return True
    if type(bound) is not type(proxy):
        return False
    # Both are asked alike, by the type that the class has chosen. A value's own comparison is never believed.
    inside, given = asked(bound, "__wrapped__"), asked(proxy, "__wrapped__")
    if type(inside) is types.MethodType and type(given) is types.MethodType:
        return inside.__self__ is given.__self__ and inside.__func__ is given.__func__
    return inside is not None and inside is given


def _name_of(node: Node, depth: int) -> Name | None:
    """Return the name that the list must have for a callable; None if it can't be determined."""
    while isinstance(node, Made) and _is_named(node.maker, _PARTIAL):
        # The callable in the state is the one that is called. Pickle writes the same object in both places.
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
    if (name := django_task_name(node)) is not None:
        return name
    if _is_named(node.maker, _GETATTR):
        arguments = _items(node.arguments)
        return None if arguments is None or not _is_plain(node) else _attribute(arguments, depth)
    return _class_of(node, depth)


def _attribute(arguments: list[Node], depth: int) -> Name | None:
    """Return the name of the object that ``getattr`` returns for ``arguments``."""
    if len(arguments) != 2 or depth == 0:
        return None
    owner, attribute = arguments
    if not (isinstance(attribute, Value) and isinstance(attribute.value, str) and attribute.value.isidentifier()):
        return None
    holder = _class_of(owner, depth - 1) if isinstance(owner, Made) else owner
    if isinstance(owner, Made) and _is_named(owner.maker, _GETATTR):
        # A class inside a class, as it is pickled before protocol 4.
        holder = _name_of(owner, depth - 1)
    return Name(holder.module, f"{holder.qualname}.{attribute.value}") if isinstance(holder, Name) else None


def _class_of(made: Made, depth: int) -> Name | None:
    """Return the name of an object's class if the ``__new__`` of that class makes the object."""
    cls: Node | None = made.maker
    if not made.by_new:
        arguments = _items(made.arguments)
        if not _is_named(made.maker, _MAKES_NEW) or not arguments:
            return None
        cls = arguments[0]
    if isinstance(cls, Made):
        cls = _name_of(cls, depth - 1) if depth and _is_named(cls.maker, _GETATTR) else None
    return cls if isinstance(cls, Name) else None


def _items(node: Node | None) -> list[Node] | None:
    return node.items if isinstance(node, Group) and node.kind == "tuple" else None


def _is_named(node: Node, name: str) -> bool:
    # The text of another node than a name may be endless.
    return isinstance(node, Name) and str(node) == name


def _is_plain(made: Made) -> bool:
    return made.state is None and not made.items and not made.by_new


def _refused(entry: str) -> NotAllowedError:
    return NotAllowedError(
        entry.replace(":", "/", 1),
        f"{entry} is not in DEFERRED_ALLOWED_CALLABLES, so a task may not call it. Add it to the list, also in "
        "the version of the app that runs the task, or defer a callable that is in the list.",
    )


def _unknown(why: str) -> NotAllowedError:
    return NotAllowedError(
        "a payload",
        f"the payload may not be loaded, because its callable can't be looked up in DEFERRED_ALLOWED_CALLABLES: {why}. "
        "Defer a function or a method, and pass everything else as its arguments.",
    )

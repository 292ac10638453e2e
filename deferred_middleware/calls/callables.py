"""What a callable is: its label, its own attributes, and whether it can be deferred.

A callable is looked at and not asked. Its attributes may have side effects, and a mock has every attribute.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import reprlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from deferred_middleware.errors import NotCallableError, NotImportableError

AnyCallable = Callable[..., Any]


class Label(NamedTuple):
    """The name of a callable, for people. Nothing is ever imported by this name."""

    module: str
    qualname: str

    @property
    def path(self) -> str:
        """The label as the last two parts of a URL's path, percent-encoded."""
        return f"{quote(self.module, safe='')}/{quote(self.qualname, safe='')}"

    def __str__(self) -> str:
        return f"{self.module}/{self.qualname}"


def without_partials(func: AnyCallable) -> AnyCallable:
    """Return the callable inside a ``functools.partial``, or ``func`` itself if it is not one."""
    while issubclass(type(func), functools.partial):
        func = func.func  # type: ignore[attr-defined] # a partial
    return func


def label_of(func: AnyCallable) -> Label:
    """Return the label of ``func``.

    A partial has the label of its function. A bound method is labelled with the class of its object and its own name. A
    callable instance is labelled with its class, or with the function that it wraps.
    """
    func = without_partials(func)
    if isinstance(func, (types.FunctionType, type)):
        return Label(func.__module__, func.__qualname__)
    if isinstance(func, types.MethodType):
        owner = func.__self__ if isinstance(func.__self__, type) else type(func.__self__)
        name = name_of(func.__func__) or type(func.__func__).__name__
        return Label(owner.__module__, f"{owner.__qualname__}.{name}")
    if isinstance(func, types.BuiltinFunctionType):
        owner_or_module = func.__self__
        if owner_or_module is None or isinstance(owner_or_module, types.ModuleType):
            return Label(func.__module__ or "builtins", func.__qualname__)
        owner = owner_or_module if isinstance(owner_or_module, type) else type(owner_or_module)
        return Label(owner.__module__, f"{owner.__qualname__}.{func.__name__}")
    if isinstance(func, _METHODS_OF_BUILTIN_CLASSES):
        return Label(func.__objclass__.__module__, func.__qualname__)
    return own_label(func) or Label(type(func).__module__, type(func).__qualname__)


def own_label(func: object) -> Label | None:
    """Return the label that an object has of its own; None if it has none.

    ``functools.update_wrapper`` gives an object the name of its function, as ``functools.lru_cache`` does. A proxy has
    the name of what it wraps.
    """
    own = own_attributes(func)
    module, qualname = own.get("__module__"), own.get("__qualname__")
    if is_proxy(func):
        module, qualname = asked(func, "__module__"), asked(func, "__qualname__")
    return Label(module, qualname) if isinstance(module, str) and isinstance(qualname, str) else None


_METHODS_OF_BUILTIN_CLASSES: Final = (
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
)


def label_text(func: AnyCallable) -> str:
    """Return the label of ``func`` as text, which is ``str(label_of(func))``. This is faster for a function."""
    if type(func) is types.FunctionType:
        return f"{func.__module__}/{func.__qualname__}"
    return str(label_of(func))


METHOD_ATTRIBUTE: Final = "__deferred_method__"
"""The attribute that holds the bound method itself, on the object that ``@task`` puts in its place.

The class of such an object has it too, so that no proxy of it passes for it.
"""


def plain_method(func: AnyCallable) -> AnyCallable:
    """Return the bound method that ``func`` replaces because of ``@task``; any other ``func`` as it is."""
    if METHOD_ATTRIBUTE not in vars(type(func)):
        return func
    method: AnyCallable = own_attributes(func)[METHOD_ATTRIBUTE]
    return method


def looked_at(value: object, name: str, default: Any = None) -> Any:
    """Return an attribute that ``value`` or its class has, as ``getattr`` does, but without running code of either.

    A bound method has the attributes of its function. Only the proxy of a function is asked for its attributes.
    """
    while type(value) is types.MethodType:
        value = value.__func__
    if type(value) is types.FunctionType:
        return value.__dict__.get(name, default)
    if is_proxy(value):
        return asked(value, name, default)
    return inspect.getattr_static(value, name, default)


def is_proxy(value: object) -> bool:
    """Tell whether ``value`` is the proxy of a callable, such as that of ``wrapt``.

    A proxy has the ``__class__`` of what it wraps, and is of another type. So has a mock, which is no proxy.
    """
    kind = type(value)
    if kind in _FUNCTION_TYPES or _class_attribute(kind) is _class_attribute(object):
        return False
    return callable(value) and not is_mock(value)


_FUNCTION_TYPES: Final = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)


def is_method_proxy(func: object) -> bool:
    """Tell whether ``func`` is the proxy of a bound method, or of the object that ``@task`` puts in its place."""
    return is_proxy(func) and asked(func, "__func__") is not None and asked(func, "__self__") is not None


def _class_attribute(kind: type) -> object:
    """Return what decides the ``__class__`` of the instances of ``kind``."""
    return next(vars(base)["__class__"] for base in kind.__mro__ if "__class__" in vars(base))


def asked(proxy: object, name: str, default: Any = None) -> Any:
    """Return an attribute of a proxy, which is usually that of what it wraps."""
    with contextlib.suppress(Exception):  # the code of the proxy may raise anything
        return getattr(proxy, name, default)
    return default


def own_attributes(value: object) -> dict[str, Any]:
    """Return the attributes in the ``__dict__`` of ``value`` without running its code; none if it has no such dict."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if type(found) is dict else {}


def name_of(func: object) -> str:
    """Return the ``__name__`` of ``func``; empty if it has none."""
    if isinstance(func, (types.FunctionType, types.BuiltinFunctionType, type)):
        return func.__name__
    name = own_attributes(func).get("__name__")
    return name if isinstance(name, str) else ""


def layers_of(func: AnyCallable) -> Iterator[Any]:
    """Go from ``func`` to the function that it wraps, through bound methods and the wrappers of ``functools.wraps``."""
    found: Any = func
    for _ in range(_MAX_WRAPPERS):
        yield found
        found = found.__func__ if type(found) is types.MethodType else looked_at(found, "__wrapped__")
        if found is None:
            break


_MAX_WRAPPERS: Final = 100


def innermost(func: AnyCallable) -> object:
    """Return the function that ``func`` wraps; see :func:`layers_of`."""
    *_, last = layers_of(func)
    return last


def with_plain_call(func: AnyCallable) -> AnyCallable:
    """Return a method that calls ``func`` if it is an instance of a class with ``__call__``; otherwise ``func``.

    ``inspect.signature`` asks an instance for attributes, which a method has without running code of the instance.
    """
    kind = type(func)
    plain = issubclass(kind, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type))
    if plain:
        return func
    if kind is functools.partial:
        inner = with_plain_call(func.func)  # type: ignore[attr-defined] # a partial
        return func if inner is func.func else functools.partial(inner, *func.args, **func.keywords)  # type: ignore
    call = inspect.getattr_static(kind, "__call__", None)
    described = any(looked_at(func, name) is not None for name in ("__wrapped__", "__signature__"))
    return func if described or type(call) is not types.FunctionType else types.MethodType(call, func)


def is_mock(value: object) -> bool:
    """Tell whether ``value`` is a mock. Only its type is looked at."""
    for module in ("unittest.mock", "mock.mock", "mock"):
        base = vars(sys.modules[module]).get("NonCallableMock") if module in sys.modules else None
        if isinstance(base, type) and issubclass(type(value), base):
            return True
    return False


def check_no_mock(func: AnyCallable) -> None:
    """Raise :class:`NotImportableError` if ``func`` is a mock, or a function that ``autospec`` has made for one."""
    body: Any = without_partials(func)
    while type(body) is types.MethodType:
        body = body.__func__
    if is_mock(body):
        label = type(body).__name__
    elif type(body) is types.FunctionType and is_mock(looked_at(body, "mock")):
        label = str(label_of(body))  # the function that autospec makes holds its mock
    else:
        return
    raise NotImportableError(
        label,
        f"{label} is a mock. A task finds its function by import, so a mock can't be deferred. Patch what the function "
        "calls, or patch `defer`. To test what is enqueued, use deferred_middleware.testing.capture_tasks.",
    )


def check_kind(func: AnyCallable) -> None:
    """Raise :class:`NotCallableError` unless calling ``func`` runs something."""
    if not callable(func):
        raise NotCallableError(
            reprlib.repr(func),
            f"{reprlib.repr(func)} ({type(func).__name__}) can't be called. Pass the function and its arguments to "
            "defer() separately: defer(f, x), not defer(f(x)).",
        )
    check_no_mock(func)
    body: Any = without_partials(func)
    if not isinstance(body, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)):
        body = type(body).__call__
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        label = label_of(func)
        raise NotCallableError(
            str(label),
            f"{label} is a generator function, so a call runs none of its body. Defer a function that iterates over "
            "the generator, such as one that runs `for _ in f(): pass`.",
        )


def agrees(module: str, qualname: str, func: AnyCallable) -> bool:
    """Tell whether the label in a URL names ``func``.

    It does if it is the label of ``func``, or if a module that is loaded has ``func``, or the class of its object,
    under that name. So a function that was renamed still runs if an alias was left behind. Nothing is imported.
    """
    label = label_of(func)
    if label.module == module and label.qualname == qualname:
        return True
    func = without_partials(func)
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        if found is None:
            return False
        found = inspect.getattr_static(found, part, None)
        if isinstance(found, (staticmethod, classmethod)):
            found = found.__func__
    body = func.__func__ if isinstance(func, types.MethodType) else func
    return found is not None and (found is body or found is type(func))

"""How a callable is named, and how a task finds it by import.

A payload holds no code: it refers to the callable by a name that pickle resolves by import. :func:`label_of` returns
the name that people and dashboards see. :func:`reference_to` returns the object to pickle in the callable's place.
:func:`explain_unimportable` says why a task could not find the callable.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import reprlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, NoReturn
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
    while isinstance(func, functools.partial):
        func = func.func
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
        name = _name_of(func.__func__) or type(func.__func__).__name__
        return Label(owner.__module__, f"{owner.__qualname__}.{name}")
    if isinstance(func, types.BuiltinFunctionType):
        owner_or_module = func.__self__
        if owner_or_module is None or isinstance(owner_or_module, types.ModuleType):
            return Label(func.__module__ or "builtins", func.__qualname__)
        owner = owner_or_module if isinstance(owner_or_module, type) else type(owner_or_module)
        return Label(owner.__module__, f"{owner.__qualname__}.{func.__name__}")
    if isinstance(func, _METHODS_OF_BUILTIN_CLASSES):
        return Label(func.__objclass__.__module__, func.__qualname__)
    # functools.update_wrapper gives an instance, such as that of functools.lru_cache, the name of its function.
    own = own_attributes(func)
    module, qualname = own.get("__module__"), own.get("__qualname__")
    if isinstance(module, str) and isinstance(qualname, str):
        return Label(module, qualname)
    return Label(type(func).__module__, type(func).__qualname__)


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
"""The attribute that holds the bound method itself, on the object that ``@task`` puts in its place."""


def plain_method(func: AnyCallable) -> AnyCallable:
    """Return the bound method that ``func`` replaces because of ``@task``; any other ``func`` as it is."""
    method: AnyCallable = looked_at(func, METHOD_ATTRIBUTE, func)
    return method


def looked_at(value: object, name: str, default: Any = None) -> Any:
    """Return an attribute that ``value`` or its class has, as ``getattr`` does, but without running code of either.

    A bound method has the attributes of its function.
    """
    while type(value) is types.MethodType:
        value = value.__func__
    if type(value) is types.FunctionType:
        return value.__dict__.get(name, default)
    return inspect.getattr_static(value, name, default)


def own_attributes(value: object) -> dict[str, Any]:
    """Return the attributes in the ``__dict__`` of ``value`` without running its code; none if it has no such dict."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if type(found) is dict else {}


def _name_of(func: object) -> str:
    """Return the ``__name__`` of ``func``; empty if it has none."""
    if isinstance(func, (types.FunctionType, types.BuiltinFunctionType, type)):
        return func.__name__
    name = own_attributes(func).get("__name__")
    return name if isinstance(name, str) else ""


def innermost(func: AnyCallable) -> object:
    """Return the function that ``func`` wraps, through bound methods and the wrappers of ``functools.wraps``."""
    found: object = func
    for _ in range(_MAX_WRAPPERS):
        if type(found) is types.MethodType:
            found = found.__func__
        elif (inner := looked_at(found, "__wrapped__")) is not None:
            found = inner
        else:
            break
    return found


_MAX_WRAPPERS: Final = 100


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


def check_no_mock(func: AnyCallable) -> None:
    """Raise :class:`NotImportableError` if ``func`` is a mock, or a function that ``autospec`` has made for one."""
    body: object = without_partials(func)
    while type(body) is types.MethodType:
        body = body.__func__
    # The function that autospec makes holds its mock.
    for candidate in (body, looked_at(body, "mock") if type(body) is types.FunctionType else None):
        for module in ("unittest.mock", "mock.mock", "mock"):
            base = vars(sys.modules[module]).get("NonCallableMock") if module in sys.modules else None
            if isinstance(base, type) and issubclass(type(candidate), base):
                label = str(label_of(body)) if candidate is not body else type(body).__name__  # type: ignore[arg-type]
                raise NotImportableError(
                    label,
                    f"{label} is a mock. A task finds its function by import, so a mock can't be deferred. Patch what "
                    "the function calls, or patch `defer`. To test what is enqueued, use "
                    "deferred_middleware.testing.capture_tasks.",
                )


class Attribute:
    """Pickles as ``getattr(owner, name)``, so that loading it returns the attribute and needs no code of ours."""

    __slots__ = ("name", "owner")

    def __init__(self, owner: object, name: str) -> None:
        self.owner = owner
        self.name = name

    def __reduce__(self) -> tuple[AnyCallable, tuple[object, str]]:
        return getattr, (self.owner, self.name)

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise TypeError. An instance is only pickled, but a partial accepts only an object that has this method."""
        raise TypeError("an Attribute can't be called: it is only pickled")


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


def outside_main(func: AnyCallable) -> AnyCallable:
    """Return ``func``. If it belongs to the ``__main__`` script, return its equal under the name that can be imported.

    There is such a name if the script was started with ``python -m module``. Otherwise :class:`NotImportableError` is
    raised.
    """
    if type(func) is functools.partial:
        inner: AnyCallable = outside_main(func.func)
        return func if inner is func.func else functools.partial(inner, *func.args, **func.keywords)
    if isinstance(func, (types.FunctionType, type)):
        return _importable_twin(func) if func.__module__ == "__main__" else func
    label = label_of(func)
    if label.module == "__main__":
        raise _belongs_to_main(label)
    return func


def reference_to(func: AnyCallable) -> AnyCallable:
    """Return the object to pickle for ``func``, which usually is ``func`` itself.

    Raises :class:`NotImportableError` for a bound method that is not an attribute of its object's class. For a callable
    that pickle itself refuses, :func:`explain_unimportable` raises the error afterwards.
    """
    if isinstance(func, types.FunctionType):
        return _private_function(func) if "__" in func.__name__ else func
    if isinstance(func, types.MethodType):
        return _method(func)
    if type(func) is functools.partial:
        inner: AnyCallable = reference_to(func.func)
        return func if inner is func.func else functools.partial(inner, *func.args, **func.keywords)
    return func


def explain_unimportable(func: AnyCallable) -> None:
    """Raise :class:`NotImportableError` if ``func`` itself, not one of its arguments, can't be found by import."""
    check_no_mock(func)
    func = without_partials(func)
    if isinstance(reference_to(func), Attribute):
        return
    owner: object = func
    if isinstance(func, types.MethodType):
        owner = func.__self__ if isinstance(func.__self__, type) else type(func.__self__)
    elif not isinstance(func, (types.FunctionType, types.BuiltinFunctionType, type)):
        owner = type(func)
    if not isinstance(owner, (types.FunctionType, type)):
        return
    label = label_of(func)
    way_out = "Move it to the top level of a module."
    if owner.__qualname__.rpartition(".")[2] == "<lambda>":
        what = "is a lambda, which can't be found by import"
        way_out = "Define it with def at the top level of a module, and defer that function."
    elif "<locals>" in owner.__qualname__:
        what = "is defined inside a function, so it can't be found by import"
        way_out += (
            " If a decorator returned it, use functools.wraps in the decorator, and defer the function by its name in "
            "the module."
        )
    else:
        try:
            found = _walk(owner.__module__, owner.__qualname__)
        except (ImportError, AttributeError, ValueError) as error:
            what = f"can't be found by import ({error})"
        else:
            if found is owner:
                return
            what = (
                f"is not the object that import finds under that name (a {type(found).__name__}). This happens to a "
                "function that a decorator has replaced"
            )
            way_out = f"Defer {owner.__qualname__} as the module has it."
    raise NotImportableError(str(label), f"{label} {what}. The task could not find it either. {way_out}")


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


def _walk(module_name: str, qualname: str) -> object:
    found: object = importlib.import_module(module_name)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _method(method: types.MethodType) -> AnyCallable:
    """Return ``method``, or a reference by another name if pickle's name for it (``__func__.__name__``) is wrong."""
    owner = method.__self__
    name = _name_of(method.__func__)
    if name and getattr(owner, name, None) == method:
        return method
    classes = owner.__mro__ if isinstance(owner, type) else type(owner).__mro__
    for attribute, value in _attributes(classes):
        held = value.__func__ if isinstance(value, classmethod) else value
        # The object that @task puts in the place of a method wraps it.
        wrapped = (held, looked_at(held, "__wrapped__"))
        if any(method.__func__ is inner for inner in wrapped) and getattr(owner, attribute, None) == method:
            return Attribute(owner, attribute)
    check_no_mock(method)
    label = label_of(method)
    raise NotImportableError(
        str(label),
        f"{label} is a bound method that is not an attribute of its object's class, so the task could not find it. "
        "Defer a method of the class, or a function with the object as an argument.",
    )


def _attributes(classes: tuple[type, ...]) -> Iterator[tuple[str, object]]:
    for cls in classes:
        yield from vars(cls).items()


def _private_function(func: types.FunctionType) -> AnyCallable:
    """Return a reference to a static or unbound method with a private name, which Python mangles in the class."""
    outer, _, name = func.__qualname__.rpartition(".")
    if not outer or "<locals>" in outer or not name.startswith("__") or name.endswith("__"):
        return func
    try:
        owner = _walk(func.__module__, outer)
    except (ImportError, AttributeError):
        return func
    mangled = f"_{outer.rpartition('.')[2].lstrip('_')}{name}"
    return Attribute(owner, mangled) if getattr(owner, mangled, None) is func else func


def _importable_twin(thing: types.FunctionType | type) -> AnyCallable:
    if "<" in thing.__qualname__:
        explain_unimportable(thing)
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name != "__main__":
        try:
            twin = _walk(spec.name, thing.__qualname__)
        except (ImportError, AttributeError):
            twin = None
        if isinstance(twin, (types.FunctionType, type)):
            return twin
    raise _belongs_to_main(label_of(thing))


def _belongs_to_main(label: Label) -> NotImportableError:
    return NotImportableError(
        str(label),
        f"{label} belongs to the script that was started (__main__). In the process that runs the task, __main__ is "
        f"another script. Move {label.qualname} to a module, and import it from there.",
    )

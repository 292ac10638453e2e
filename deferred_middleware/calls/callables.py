"""How a callable is named, and how a task finds it again.

A payload holds no code: the callable travels as a reference that pickle resolves by import. :func:`label_of` gives the
name that people and dashboards see; :func:`reference_to` gives what to pickle in the callable's place, or says why the
task could not find it.
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
    """The name of a callable: for people, never for looking anything up by import."""

    module: str
    qualname: str

    @property
    def path(self) -> str:
        """The label as the last two parts of a URL's path, percent-encoded."""
        return f"{quote(self.module, safe='')}/{quote(self.qualname, safe='')}"

    def __str__(self) -> str:
        return f"{self.module}/{self.qualname}"


def label_of(func: AnyCallable) -> Label:
    """Return the label of ``func``.

    A partial has its function's, a bound method its object's class and its own name, a callable instance its class, or
    the function's that it wraps.
    """
    while isinstance(func, functools.partial):
        func = func.func
    if isinstance(func, (types.FunctionType, type)):
        return Label(func.__module__, func.__qualname__)
    if isinstance(func, types.MethodType):
        owner = func.__self__ if isinstance(func.__self__, type) else type(func.__self__)
        name = getattr(func.__func__, "__name__", type(func.__func__).__name__)
        return Label(owner.__module__, f"{owner.__qualname__}.{name}")
    if isinstance(func, types.BuiltinFunctionType):
        owner_or_module = func.__self__
        if owner_or_module is None or isinstance(owner_or_module, types.ModuleType):
            return Label(func.__module__ or "builtins", func.__qualname__)
        owner = owner_or_module if isinstance(owner_or_module, type) else type(owner_or_module)
        return Label(owner.__module__, f"{owner.__qualname__}.{func.__name__}")
    if isinstance(func, _METHODS_OF_BUILTIN_CLASSES):
        return Label(func.__objclass__.__module__, func.__qualname__)
    # What functools.update_wrapper made of an instance, such as that of functools.lru_cache, has its function's name.
    own = getattr(func, "__dict__", {})
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
    """Return the label of ``func`` as text; the same as ``str(label_of(func))``, and quicker for a function."""
    if type(func) is types.FunctionType:
        return f"{func.__module__}/{func.__qualname__}"
    return str(label_of(func))


METHOD_ATTRIBUTE: Final = "__deferred_method__"
"""The attribute by which what ``@task`` makes of a bound method tells that method."""


def plain_method(func: AnyCallable) -> AnyCallable:
    """Return the bound method that ``func`` stands for, if it does, and otherwise ``func``."""
    method: AnyCallable = getattr(func, METHOD_ATTRIBUTE, func)
    return method


class Attribute:
    """Stands for ``getattr(owner, name)`` in a pickle: what is loaded is the attribute, without any code of ours."""

    __slots__ = ("name", "owner")

    def __init__(self, owner: object, name: str) -> None:
        self.owner = owner
        self.name = name

    def __reduce__(self) -> tuple[AnyCallable, tuple[object, str]]:
        return getattr, (self.owner, self.name)

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: this stands in a pickle only, where a partial insists on something callable."""
        raise TypeError("an Attribute is pickled, not called")


def check_kind(func: AnyCallable) -> None:
    """Raise :class:`NotCallableError` unless calling ``func`` runs something."""
    if not callable(func):
        raise NotCallableError(
            reprlib.repr(func),
            f"{reprlib.repr(func)} ({type(func).__name__}) can't be called: give defer() the function and its "
            "arguments apart, as in defer(f, x), not defer(f(x)).",
        )
    body: Any = func
    while isinstance(body, functools.partial):
        body = body.func
    if not isinstance(body, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)):
        body = type(body).__call__
    if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
        label = label_of(func)
        raise NotCallableError(
            str(label),
            f"{label} is a generator function: calling it runs none of its body. Defer a function "
            "that goes through it, such as one that does `for _ in f(): pass`.",
        )


def outside_main(func: AnyCallable) -> AnyCallable:
    """Return ``func``, or for one of the ``__main__`` script the same one as other processes import it.

    That exists where the script was started with ``python -m module``; otherwise :class:`NotImportableError` is raised.
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
    """Return what to pickle for ``func``: mostly ``func`` itself.

    Raises :class:`NotImportableError` for a bound method that its object's class doesn't hold. What pickle itself
    refuses is explained by :func:`explain_unimportable` afterwards.
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
    """Raise :class:`NotImportableError` if it is ``func``, not an argument, that import can't find."""
    while isinstance(func, functools.partial):
        func = func.func
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
        what = "is a lambda, which import can't find"
        way_out = "Write it as a function at the top level of a module (def), and defer that."
    elif "<locals>" in owner.__qualname__:
        what = "is defined inside a function, where import can't find it"
        way_out += (
            " If a decorator made it, let the decorator use functools.wraps, and defer the name that the module holds."
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
                f"is not what import finds under that name (a {type(found).__name__}), as happens to "
                "what a decorator wraps"
            )
            way_out = f"Defer what the module holds as {owner.__qualname__}."
    raise NotImportableError(str(label), f"{label} {what}, so that the task could not find it either. {way_out}")


def agrees(module: str, qualname: str, func: AnyCallable) -> bool:
    """Tell whether a URL's label names ``func``.

    It does if it is the label of ``func``, or if a module that is loaded already holds ``func``, or the class of its
    object, under that name: so a function that was renamed with an alias left behind still runs. Nothing is imported.
    """
    label = label_of(func)
    if label.module == module and label.qualname == qualname:
        return True
    while isinstance(func, functools.partial):
        func = func.func
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
    """Return ``method``, or a reference by another name where pickle's own (``__func__.__name__``) would not work."""
    owner = method.__self__
    name = getattr(method.__func__, "__name__", "")
    if name and getattr(owner, name, None) == method:
        return method
    classes = owner.__mro__ if isinstance(owner, type) else type(owner).__mro__
    for attribute, value in _attributes(classes):
        held = value.__func__ if isinstance(value, classmethod) else value
        # What @task makes of a method wraps it.
        if method.__func__ in (held, getattr(held, "__wrapped__", None)) and getattr(owner, attribute, None) == method:
            return Attribute(owner, attribute)
    label = label_of(method)
    raise NotImportableError(
        str(label),
        f"{label} is a bound method that is no attribute of its object's class, so that the task could not "
        "find it. Defer a method that the class holds, or a function that takes the object.",
    )


def _attributes(classes: tuple[type, ...]) -> Iterator[tuple[str, object]]:
    for cls in classes:
        yield from vars(cls).items()


def _private_function(func: types.FunctionType) -> AnyCallable:
    """Return a reference to a static or unbound method with a private name, which import sees mangled."""
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
        f"{label} belongs to the script that was started (__main__), which is another one where the task runs. "
        "Move it to a module of its own and import it from there.",
    )

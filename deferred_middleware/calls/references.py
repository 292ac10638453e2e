"""How a task finds a callable by import.

A payload holds no code: it refers to the callable by a name that pickle resolves by import. :func:`reference_to`
returns the object to pickle in the callable's place. :func:`dumps_by_name` pickles what pickle itself refuses.
:func:`explain_unimportable` says why a task could not find the callable.
"""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import sys
import types
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, NoReturn

from deferred_middleware.calls.callables import (
    AnyCallable,
    Label,
    check_no_mock,
    is_method_proxy,
    is_mock,
    is_proxy,
    label_of,
    layers_of,
    looked_at,
    name_of,
    own_label,
    without_partials,
)
from deferred_middleware.calls.options import DECLARED_ATTRIBUTE
from deferred_middleware.errors import NotImportableError


class Attribute:
    """Pickles as ``getattr(owner, name)``, so that loading it returns the attribute and needs no code of ours."""

    __slots__ = ("name", "owner")

    def __init__(self, owner: object, name: str) -> None:
        self.owner: object = owner
        self.name: str = name

    def __reduce__(self) -> tuple[AnyCallable, tuple[object, str]]:
        return getattr, (self.owner, self.name)

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise TypeError. An instance is only pickled, but a partial accepts only an object that has this method."""
        raise TypeError("an Attribute can't be called: it is only pickled")


def held_for(func: AnyCallable) -> AnyCallable:
    """Return what the module holds in the place of its function ``func``, because a decorator has wrapped ``func``.

    That is ``func`` itself if there is no such decorator.
    """
    label = Label(func.__module__, func.__qualname__) if type(func) is types.FunctionType else own_label(func)
    module = None if label is None else sys.modules.get(label.module)
    held: Any = None if label is None or module is None else vars(module).get(label.qualname)
    if held is None or held is func or is_mock(held):
        return func
    return held if any(layer is func for layer in layers_of(held)) else func


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

    Raises :class:`NotImportableError` for a bound method that is not an attribute of its object's class, and for a
    mock. For a callable that pickle itself refuses, :func:`explain_unimportable` raises the error afterwards.
    """
    kind = type(func)
    if kind is functools.partial and isinstance(func, functools.partial):  # the second is for the type checker
        inner: AnyCallable = reference_to(func.func)
        return func if inner is func.func else functools.partial(inner, *func.args, **func.keywords)
    if kind is types.FunctionType:
        return _private_function(func) if "__" in func.__name__ else func  # type: ignore[arg-type] # is a function
    if kind is types.MethodType:
        return _method(func)  # type: ignore[arg-type] # is a method
    check_no_mock(func)
    return _method(func) if is_method_proxy(func) else func  # type: ignore[arg-type] # has a method's attributes


def dumps_by_name(value: object, protocol: int) -> bytes:
    """Return the pickle of ``value``, in which all callables that a module holds are pickled by their names.

    Pickle itself can't pickle the proxy of a function, nor the object that a decorator has put in the place of a
    function and that holds the function.
    """
    stream = io.BytesIO()
    NamePickler(stream, protocol).dump(value)
    return stream.getvalue()


class NamePickler(pickle.Pickler):
    """Pickles a callable by its name, also if it is an object of another type than a function, if import finds it."""

    def reducer_override(self, obj: Any) -> Any:
        """Return the name of a callable that import finds; leave every other object to pickle."""
        return _reduced(obj)


def _reduced(func: Any) -> Any:
    """Return what pickle has to write for ``func``: its global name, or how to get it from its owner."""
    kind = type(func)
    if issubclass(kind, _PICKLED_BY_NAME) or not callable(func) or is_mock(func):
        return NotImplemented
    if is_method_proxy(func):
        try:
            reference = _method(func)
        except NotImportableError:
            return NotImplemented
        return reference.__reduce__() if isinstance(reference, Attribute) else NotImplemented
    label = own_label(func)
    held = None if label is None else _held(label)
    if label is None or held is None:
        return NotImplemented
    if held.found is func and held.qualname == label.qualname:
        return label.qualname
    # The class makes the proxy of a static method anew for each access.
    is_made_anew = type(held.found) is kind and is_proxy(func) and isinstance(held.owner, type) and held.found == func
    return (getattr, (held.owner, held.name)) if is_made_anew or held.found is func else NotImplemented


_PICKLED_BY_NAME: Final = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    functools.partial,
    type,
)
"""The types of the callables that pickle itself can pickle, if import finds them."""


def explain_unimportable(func: AnyCallable) -> None:
    """Raise :class:`NotImportableError` if ``func`` itself, not one of its arguments, can't be found by import."""
    check_no_mock(func)
    func = without_partials(func)
    if isinstance(reference_to(func), Attribute):
        return
    owner: Any = func
    if isinstance(func, types.MethodType):
        owner = func.__self__ if isinstance(func.__self__, type) else type(func.__self__)
    elif not isinstance(func, (types.FunctionType, types.BuiltinFunctionType, type)):
        owner = func if _is_lost_decoration(func) else type(func)
    elif isinstance(func, types.BuiltinFunctionType):
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
            if any(looked_at(layer, DECLARED_ATTRIBUTE) is not None for layer in layers_of(func)):
                way_out += " If another decorator is above @task, put @task on top."
    raise NotImportableError(str(label), f"{label} {what}. The task could not find it either. {way_out}")


def _is_lost_decoration(func: AnyCallable) -> bool:
    """Tell whether ``func`` is an object with the name of the function that it decorates, and can't be pickled."""
    if own_label(func) is None:
        return False
    try:
        dumps_by_name(func, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 - pickling runs the code of the object
        return True
    return False


def _walk(module_name: str, qualname: str) -> object:
    found: object = importlib.import_module(module_name)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _method(method: types.MethodType) -> AnyCallable:
    """Return ``method``, or a reference by another name if pickle's name for it (``__func__.__name__``) is wrong."""
    owner = method.__self__
    name = name_of(method.__func__)
    if name and getattr(owner, name, None) == method:
        # Pickle has to be told how to pickle a proxy of a method.
        return method if type(method) is types.MethodType else Attribute(owner, name)
    classes = owner.__mro__ if isinstance(owner, type) else type(owner).__mro__
    for attribute, value in _attributes(classes):
        held = value.__func__ if isinstance(value, classmethod) else value
        # The object that @task puts in the place of a method wraps it.
        wrapped = (held, looked_at(held, "__wrapped__"))
        may_be = is_proxy(held) or any(method.__func__ is inner for inner in wrapped)
        if may_be and getattr(owner, attribute, None) == method:
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


class _Held(NamedTuple):
    """What a module or class holds under a name."""

    owner: object
    name: str
    qualname: str
    found: object


def _held(label: Label) -> _Held | None:
    """Return what is held under a label, which Python mangles in a class if it is private; None if there is nothing."""
    module, qualname = label
    outer, _, name = qualname.rpartition(".")
    if "<" in qualname:
        return None
    if outer and name.startswith("__") and not name.endswith("__"):
        name = f"_{outer.rpartition('.')[2].lstrip('_')}{name}"
    try:
        owner: Any = _walk(module, outer) if outer else importlib.import_module(module)
        return _Held(owner, name, f"{outer}.{name}" if outer else name, getattr(owner, name))
    except Exception:  # noqa: BLE001 - importing runs any code
        return None


def _private_function(func: types.FunctionType) -> AnyCallable:
    """Return a reference to a static or unbound method with a private name, which Python mangles in the class."""
    held = _held(Label(func.__module__, func.__qualname__))
    is_mangled = held is not None and held.found is func and held.qualname != func.__qualname__
    return Attribute(held.owner, held.name) if held is not None and is_mangled else func


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

"""``@task``: a function's own options for being deferred, and methods that defer it.

    @task(queue="mail", max_attempts=5, redact=("password",))
    def send_welcome(user_id: int, password: str) -> None: ...

    send_welcome(7, "secret")                           # an ordinary call
    send_welcome.defer(7, "secret")                     # a task, with the options above
    send_welcome.options(countdown=60).defer(7, "secret")
    defer(send_welcome, 7, "secret")                    # has the options above as well

A type checker checks the arguments of ``defer``, ``defer_async`` and ``call`` against the function's signature. To set
options for one call, use ``options``. In a class, put ``@task`` on top, above ``@classmethod``, ``@staticmethod`` and
every other decorator. A decorator above the ``@task`` of a module's function has to use ``functools.wraps``, and the
task runs what the module holds. A module's function stays the same object. For a method, the class holds a descriptor.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

from deferred_middleware.calls.call import Call, call
from deferred_middleware.calls.callables import METHOD_ATTRIBUTE, AnyCallable, label_of, plain_method
from deferred_middleware.calls.options import DECLARED_ATTRIBUTE, Options
from deferred_middleware.calls.redaction import REDACT_ATTRIBUTE
from deferred_middleware.calls.references import held_for
from deferred_middleware.enqueue.api import defer, defer_async

if TYPE_CHECKING:
    import datetime

    from google.appengine.api import taskqueue
    from typing_extensions import Unpack

    from deferred_middleware.calls.option_types import TaskOptions
    from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
    from deferred_middleware.enqueue.futures import EnqueueFuture

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


class TaskFunction(Generic[P, R]):
    """The type of a function decorated with ``@task``, for type checkers. At run time the function keeps its type."""

    if TYPE_CHECKING:

        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
            """Call the function now."""

        def defer(self, /, *args: P.args, **kwargs: P.kwargs) -> EnqueuedTask:
            """Defer a call; see :func:`deferred_middleware.defer`."""

        def defer_async(self, /, *args: P.args, **kwargs: P.kwargs) -> EnqueueFuture:
            """Start to defer a call; see :func:`deferred_middleware.defer_async`."""

        def call(self, /, *args: P.args, **kwargs: P.kwargs) -> Call:
            """Return the call, not enqueued; see :func:`deferred_middleware.call`."""

        def options(self, /, **options: Unpack[TaskOptions]) -> TaskFunction[P, R]:
            """Return a copy with other options, those of ``defer`` without their underscore."""

        @overload
        def __get__(self, instance: None, owner: type[object] | None = None) -> TaskFunction[P, R]: ...
        @overload
        def __get__(
            self: TaskFunction[Concatenate[S, Q], R], instance: S, owner: type[object] | None = None
        ) -> TaskFunction[Q, R]: ...
        def __get__(self, instance: object, owner: type[object] | None = None) -> Any:
            """Bind the method to an object or a class."""


class TaskOfClass(TaskFunction[..., R], Generic[Q, R]):
    """The type of a class method decorated with ``@task``, for type checkers, to which its first argument is a class.

    A type checker also takes this type for a function whose first argument may be anything. Direct calls of such a
    function are not checked.
    """

    if TYPE_CHECKING:

        def __get__(  # type: ignore[override] # with the class already bound
            self, instance: object, owner: type[object] | None = None
        ) -> TaskFunction[Q, R]:
            """Bind the method to the class."""


class _Decorate(Protocol):
    @overload
    def __call__(self, func: Callable[Concatenate[type[T], Q], R]) -> TaskOfClass[Q, R]: ...
    @overload
    def __call__(self, func: Callable[P, R]) -> TaskFunction[P, R]: ...


@overload
def task(func: Callable[Concatenate[type[T], Q], R], /) -> TaskOfClass[Q, R]: ...
@overload
def task(func: Callable[P, R], /) -> TaskFunction[P, R]: ...
@overload
def task(
    *,
    queue: str | Iterable[str] | None = None,
    target: str | None = None,
    countdown: float | datetime.timedelta | None = None,
    retry_options: taskqueue.TaskRetryOptions | Mapping[str, object] | None = None,
    max_attempts: int | None = None,
    deadline: float | datetime.timedelta | None = None,
    name: str | None = None,
    headers: Mapping[str, str] | None = None,
    transactional: bool | Literal["auto"] | None = None,
    redact: Iterable[str] = (),
) -> _Decorate: ...
def task(func: Any = None, /, *, redact: Iterable[str] = (), **options: Any) -> Any:
    """Give a function its own options for being deferred, and the methods that defer it.

    Args:
        func: the function, if the decorator is used without arguments.
        redact: names of arguments that must not appear in logs.
        options: those of :func:`deferred_middleware.defer`, without their underscore. A call's own options take
            precedence.

    Raises:
        UnknownOptionError: ``defer`` has no such option.
        OptionError: an option's value can't be used, or ``redact`` names no argument of the function.
    """
    declared = {f"_{name}": value for name, value in options.items() if value is not None}

    def decorate(func: Any) -> Any:
        body = func.__func__ if isinstance(func, (classmethod, staticmethod)) else func
        _check(body, declared, redacted)
        setattr(body, DECLARED_ATTRIBUTE, declared)
        setattr(body, REDACT_ATTRIBUTE, redacted)
        if isinstance(func, (classmethod, staticmethod)) or _is_in_class(body):
            return _Method(func)
        return _attach(body)

    redacted = frozenset((redact,) if isinstance(redact, str) else redact)
    return decorate if func is None else decorate(func)


def _check(body: AnyCallable, declared: Mapping[str, object], redacted: frozenset[str]) -> None:
    signature = inspect.signature(body)
    Options.take_from(declared, label_of(body), inspect.Signature())
    unknown = sorted(redacted - set(signature.parameters))
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    if unknown and not takes_any:
        from deferred_middleware.errors import OptionError

        raise OptionError("redact", unknown[0], f"{label_of(body)}{signature} has no argument of this name.")


def _is_in_class(body: AnyCallable) -> bool:
    outer = getattr(body, "__qualname__", "").rpartition(".")[0]
    return bool(outer) and not outer.endswith("<locals>")


_METHODS: Final = ("defer", "defer_async", "call", "options")


def _attach(body: Any) -> Any:
    """Add the methods that defer it to a module's function."""
    deferring = _Deferring(body, {})
    for name in _METHODS:
        setattr(body, name, getattr(deferring, name))
    return body


class _Deferring:
    """A callable with options for its calls, which override the options that it declares."""

    def __init__(self, func: AnyCallable, overrides: Mapping[str, object]) -> None:
        functools.update_wrapper(self, func, updated=())
        self._func = func
        self._overrides = overrides

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        return held_for(self._func)(*args, **kwargs)

    def defer(self, /, *args: Any, **kwargs: Any) -> EnqueuedTask:
        """Defer a call."""
        return defer(held_for(self._func), *args, **{**self._overrides, **kwargs})

    def defer_async(self, /, *args: Any, **kwargs: Any) -> EnqueueFuture:
        """Start to defer a call."""
        return defer_async(held_for(self._func), *args, **{**self._overrides, **kwargs})

    def call(self, /, *args: Any, **kwargs: Any) -> Call:
        """Return a call."""
        return call(held_for(self._func), *args, **{**self._overrides, **kwargs})

    def options(self, /, **options: object) -> _Deferring:
        """Return a copy with other options."""
        given = {f"_{name}": value for name, value in options.items()}
        Options.take_from(given, label_of(self._func), inspect.Signature())
        return _Deferring(self._func, {**self._overrides, **given})


class _Bound(_Deferring):
    """A bound method with the methods that defer it. It equals the plain bound method."""

    __deferred_method__: types.MethodType | None = None
    """See :data:`METHOD_ATTRIBUTE`."""

    def __init__(self, method: types.MethodType) -> None:
        super().__init__(method, {})
        self.__self__ = method.__self__
        self.__func__ = method.__func__
        setattr(self, METHOD_ATTRIBUTE, method)

    def __eq__(self, other: object) -> bool:
        return self._func == plain_method(other)  # type: ignore[arg-type] # any object will do

    def __hash__(self) -> int:
        return hash(self._func)

    def __getattr__(self, name: str) -> Any:
        # A decorator above @task, such as one made with wrapt, looks for the function's attributes here.
        if name in (DECLARED_ATTRIBUTE, REDACT_ATTRIBUTE):
            return getattr(self._func, name)
        raise AttributeError(name)

    def __reduce__(self) -> tuple[object, ...]:
        return getattr, (self.__self__, self.__func__.__name__)


class _Method:
    """The descriptor that a class holds for a decorated method."""

    def __init__(self, func: Any) -> None:
        body = func.__func__ if isinstance(func, (classmethod, staticmethod)) else func
        functools.update_wrapper(self, body)
        self._func = func
        self._body = body
        # If another decorator is above @task, functools.wraps gives them to what the class holds then.
        for name in _METHODS:
            setattr(self, name, _Misplaced(f"{body.__qualname__}.{name}"))
        _attach(body)

    def __get__(self, instance: object, owner: type[object] | None = None) -> Any:
        bound = self._func.__get__(instance, owner)
        return _Bound(bound) if isinstance(bound, types.MethodType) else bound

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        # While the class is being made, and beneath another decorator.
        return self._body(*args, **kwargs)


class _Misplaced:
    """Stands for a method that defers, where it can't know the object or class that the call belongs to."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise TypeError."""
        raise TypeError(
            f"{self._name}: in a class, put @task on top: above @classmethod, @staticmethod and every other decorator."
        )

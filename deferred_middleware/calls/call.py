"""A call: a callable with its arguments, checked before it is enqueued, and run to its end when it is delivered."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, Final, overload

from deferred_middleware.calls import redaction
from deferred_middleware.calls.callables import (
    AnyCallable,
    Label,
    check_kind,
    innermost,
    label_of,
    plain_method,
    with_plain_call,
)
from deferred_middleware.calls.options import NO_OPTIONS, Options, with_declared
from deferred_middleware.calls.references import outside_main
from deferred_middleware.errors import ArgumentsError, NeverRanError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeGuard

    from typing_extensions import ParamSpec, TypeVarTuple, Unpack

    from deferred_middleware.calls.option_types import DeferOptions

    P = ParamSpec("P")
    Ts = TypeVarTuple("Ts")

Content = tuple[AnyCallable, tuple[Any, ...], Mapping[str, Any]]
"""The content of a payload: a callable, its positional arguments and its keyword arguments."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A callable with its arguments, and the options with which it is enqueued."""

    func: AnyCallable
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Options = NO_OPTIONS

    @classmethod
    def of(cls, content: Content) -> Call:
        """Return the call that is the content of a payload."""
        func, args, kwargs = content
        return cls(func=func, args=args, kwargs=kwargs)

    @property
    def label(self) -> Label:
        """The callable's label."""
        return label_of(self.func)

    def run(self) -> object:
        """Run the call to its end, and return its result.

        If the callable returns a coroutine or another awaitable, it is awaited in a new event loop. If the callable
        returns an ndb Future (of the SDK's ndb or of google-cloud-ndb), an SDK UserRPC or a ``concurrent.futures``
        Future, this method waits for its result. Raises :class:`NeverRanError` if the callable returns a generator of
        its own body that was never started.
        """
        return wait_for_result(self.func, self.func(*self.args, **self.kwargs))

    def describe(self, shown: redaction.Shown = "short") -> str:
        """Return the call as text for people: its label and its arguments.

        ``shown`` sets how much of the arguments is shown: ``"short"``, ``"names"`` or ``"none"``. Arguments that the
        function redacts with ``@task(redact=…)`` are never shown.
        """
        return f"{self.label}({redaction.show(self.func, self.args, self.kwargs, shown)})"


def wait_for_result(func: AnyCallable, result: Any) -> object:
    """Return the final result of a call of ``func`` that returned ``result``; see :meth:`Call.run`."""
    while result is not None:
        # The type decides. Attributes of the result may have side effects, and a mock has every attribute.
        kind = type(result)
        if _is_awaitable(kind, result):
            result = _run_awaitable(result)
        elif issubclass(kind, _loaded(_EXECUTOR_FUTURES)):
            result = result.result()
        elif issubclass(kind, _loaded(_GOOGLE_FUTURES)):
            result = result.get_result()
        else:
            _check_generator(func, result)
            break
    return result


def _run_awaitable(awaitable: Awaitable[object]) -> object:
    """Return the result of ``awaitable``.

    A thread can run one event loop at a time. If this thread runs a loop already, because the server calls the app from
    its own loop, the awaitable runs in another thread, with a copy of the context. The caller's loop is blocked
    meanwhile, as it is by everything that a WSGI app does. Raises :class:`RuntimeError` for a future of the caller's
    loop, which would never be done.
    """
    import asyncio  # few calls need it, and it takes long to import
    import contextvars
    import threading
    from concurrent.futures import Future

    try:
        running = asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_wait_for(awaitable))
    if isinstance(awaitable, asyncio.Future) and awaitable.get_loop() is running:
        raise RuntimeError(
            "the call returned a future of the event loop that runs in this thread, but this thread has to wait for "
            "the task. Await the future in an `async def` function, and defer that function."
        )
    outcome: Future[object] = Future()
    context = contextvars.copy_context()

    def run_in_thread() -> None:
        try:
            outcome.set_result(context.run(asyncio.run, _wait_for(awaitable)))
        except BaseException as error:  # noqa: BLE001 - raised again in the waiting thread
            outcome.set_exception(error)

    thread = threading.Thread(target=run_in_thread, name="deferred_middleware event loop")
    thread.start()
    try:
        return outcome.result()
    finally:
        thread.join()


async def _wait_for(awaitable: Awaitable[object]) -> object:
    return await awaitable


@overload
def call(func: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> Call: ...
@overload
def call(func: Callable[[Unpack[Ts]], object], /, *args: Unpack[Ts], **options: Unpack[DeferOptions]) -> Call: ...
def call(func: AnyCallable, /, *args: Any, **kwargs: Any) -> Call:  # type: ignore[misc] # mypy does not match *args: Any with *args: *Ts
    """Return the call that ``defer`` would enqueue for the same arguments. The call is checked, but not enqueued.

    A keyword argument with a leading underscore that names an option is an option; see
    :func:`deferred_middleware.defer`.

    Raises:
        NotCallableError: ``func`` can't be called, or is a generator function.
        NotImportableError: ``func`` belongs to the ``__main__`` script.
        ArgumentsError: the arguments don't match the signature of ``func``.
        UnknownOptionError: neither ``defer`` nor ``func`` has an argument of this name.
        OptionError: the value of an option is not accepted.
    """
    if _is_plain_function(func) and _is_plain_call(func, args, kwargs):
        return Call(func=func, args=args, kwargs=kwargs)
    func = plain_method(func)
    check_kind(func)
    func = outside_main(func)
    kwargs = with_declared(func, kwargs)
    signature = _signature(func)
    options = NO_OPTIONS
    if any(name.startswith("_") for name in kwargs):
        options, kwargs = Options.take_from(kwargs, label_of(func), signature)
    _check_arguments(func, signature, args, kwargs)
    return Call(func=func, args=args, kwargs=kwargs, options=options)


def call_with(func: AnyCallable, args: tuple[Any, ...], kwargs: Mapping[str, Any], options: Options) -> Call:
    """Return a call as :func:`call` does, with all of ``kwargs`` as arguments of ``func``. It raises the same errors.

    ``func`` is called with the arguments of another API than ``defer``, in which no keyword is an option.
    """
    check_kind(func)
    func = outside_main(func)
    _check_arguments(func, _signature(func), args, kwargs)
    return Call(func=func, args=args, kwargs=kwargs, options=options)


def _check_arguments(
    func: AnyCallable, signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    if signature is None:
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        label = str(label_of(func))
        raise ArgumentsError(label, f"{label}{signature} can't be called with these arguments: {error}.") from None


def _is_plain_function(func: AnyCallable) -> TypeGuard[types.FunctionType]:
    """Tell whether ``func`` is a function without attributes, of a module that other processes can import."""
    return type(func) is types.FunctionType and not func.__dict__ and func.__module__ != "__main__"


def _is_plain_call(func: types.FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether the arguments match the function and hold no options. This is faster than binding them.

    False means only that the full checks are needed.
    """
    places, by_place, required, required_by_place, takes_any_name = _plain_parameters(func)
    count = len(args)
    if count > by_place:
        return False
    missing = required - (count if count < required_by_place else required_by_place)
    for name in kwargs:
        place = places.get(name)
        if place is None:
            if takes_any_name and not name.startswith("_"):
                continue
            return False
        if place[0] < count:
            return False
        missing -= place[1]
    return missing == 0


@functools.lru_cache(maxsize=1024)
def _plain_parameters(func: types.FunctionType) -> tuple[dict[str, tuple[int, bool]], int, int, int, bool]:
    """Return the parameters of a function that has no positional-only ones.

    The first item has the position of each parameter, and whether it is required. It leaves out names that may be an
    option's. The others are: the number of arguments that can be given by position, or -1 if the function is a
    generator function or has positional-only parameters; the number of required parameters; the number of required
    positional parameters; and whether arguments of any other name are accepted.
    """
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        return {}, -1, 0, 0, False
    places: dict[str, tuple[int, bool]] = {}
    by_place = all_required = required_by_place = 0
    takes_any_name = False
    for place, parameter in enumerate(_function_signature(func).parameters.values()):
        if parameter.kind is parameter.POSITIONAL_ONLY:
            return {}, -1, 0, 0, False
        if parameter.kind is parameter.VAR_POSITIONAL:
            by_place = sys.maxsize
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_any_name = True
            continue
        required = parameter.default is parameter.empty
        all_required += required
        if not parameter.name.startswith("_"):
            places[parameter.name] = (place, required)
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            by_place += 1
            required_by_place += required
    return places, by_place, all_required, required_by_place, takes_any_name


def _signature(func: AnyCallable) -> inspect.Signature | None:
    """Return the signature of ``func`` itself, not of a function that it wraps: a wrapper may have other parameters."""
    if isinstance(func, types.FunctionType):
        return _function_signature(func)
    try:
        return inspect.signature(with_plain_call(func), follow_wrapped=False)
    except (ValueError, TypeError):
        return None  # some builtins have no signature


@functools.lru_cache(maxsize=1024)
def _function_signature(func: types.FunctionType) -> inspect.Signature:
    return inspect.signature(func, follow_wrapped=False)


_EXECUTOR_FUTURES: Final = (("concurrent.futures", "Future"),)
_GOOGLE_FUTURES: Final = (
    ("google.appengine.ext.ndb.tasklets", "Future"),
    ("google.cloud.ndb.tasklets", "Future"),
    ("google.appengine.api.apiproxy_stub_map", "UserRPC"),
    ("google.appengine.datastore.datastore_rpc", "MultiRpc"),
)


def _loaded(classes: tuple[tuple[str, str], ...]) -> tuple[type, ...]:
    """Return those classes whose modules are imported. Before that, no object can be an instance of a class."""
    return tuple(
        vars(module)[name]
        for module_name, name in classes
        if (module := sys.modules.get(module_name)) is not None and name in vars(module)
    )


def _is_awaitable(kind: type, result: Any) -> bool:
    if kind is types.GeneratorType:  # that of a function with the decorator types.coroutine can be awaited
        return bool(result.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE)
    return issubclass(kind, Awaitable)


def _check_generator(func: AnyCallable, result: object) -> None:
    """Raise :class:`NeverRanError` if ``result`` is a generator of the body of ``func`` that was never started."""
    if type(result) is types.GeneratorType:
        code, started = result.gi_code, inspect.getgeneratorstate(result) != inspect.GEN_CREATED
    elif type(result) is types.AsyncGeneratorType:
        code, started = result.ag_code, False
    else:
        return
    body = innermost(func)
    if type(body) is types.FunctionType and code is body.__code__ and not started:
        raise NeverRanError(
            f"{label_of(func)} returned a generator, and none of its body ran. Defer a function that iterates over the "
            "generator, such as one that runs `for _ in f(): pass`."
        )

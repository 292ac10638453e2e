"""Await what a call returned, in an event loop of its own, from code that is not asynchronous.

A call: what is deferred, checked for what can be known about it, and how it is run.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import functools
import inspect
import sys
import threading
import types
from collections.abc import Awaitable, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from deferred_middleware.calls import redaction
from deferred_middleware.calls.callables import AnyCallable, Label, check_kind, label_of, outside_main, plain_method
from deferred_middleware.calls.options import NO_OPTIONS, Options, with_declared
from deferred_middleware.errors import ArgumentsError, NeverRanError

if TYPE_CHECKING:
    import concurrent.futures
    from typing import TypeGuard


def run(awaitable: Awaitable[object]) -> object:
    """Return what ``awaitable`` comes to.

    A thread has one event loop that runs. Where this one has one already, as under a server that calls the app from
    its own loop, the new one runs in another thread, with a copy of the context; the caller's waits meanwhile, as it
    does for everything that a WSGI app does. Raises :class:`RuntimeError` for a future of the caller's running loop,
    which would be waited for in vain.
    """
    running = _running_loop()
    if running is None:
        return asyncio.run(_wait_for(awaitable))
    if isinstance(awaitable, asyncio.Future) and awaitable.get_loop() is running:
        raise RuntimeError(
            "the call returned a future of the event loop that runs in this thread, which has to wait for the task. "
            "Await it in an `async def` function and defer that."
        )
    outcome: Future[object] = Future()
    context = contextvars.copy_context()

    def run_in_thread() -> None:
        try:
            outcome.set_result(context.run(asyncio.run, _wait_for(awaitable)))
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            outcome.set_exception(error)

    thread = threading.Thread(target=run_in_thread, name="deferred_middleware event loop")
    thread.start()
    try:
        return outcome.result()
    finally:
        thread.join()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _wait_for(awaitable: Awaitable[object]) -> object:
    return await awaitable


Content = tuple[AnyCallable, tuple[Any, ...], Mapping[str, Any]]
"""What a payload holds: a callable, its positional and its keyword arguments."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A callable with its arguments, and the options for enqueueing it."""

    func: AnyCallable
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Options = NO_OPTIONS

    @classmethod
    def of(cls, content: Content) -> Call:
        """Return the call that a payload holds."""
        func, args, kwargs = content
        return cls(func=func, args=args, kwargs=kwargs)

    @property
    def label(self) -> Label:
        """The callable's name."""
        return label_of(self.func)

    def run(self) -> object:
        """Run the call to its end, and return what it returned.

        A coroutine or another awaitable is awaited in an event loop of its own; an ndb Future (of the SDK's ndb or of
        google-cloud-ndb), an SDK UserRPC and a ``concurrent.futures`` one are waited for. Raises
        :class:`NeverRanError` if what came back is a generator that holds the callable's body and was never started.
        """
        return ended(self.func, self.func(*self.args, **self.kwargs))

    def describe(self, shown: redaction.Shown = "short") -> str:
        """Return the call for people: its label and its arguments.

        ``shown`` says how much of them: ``"short"``, ``"names"`` or ``"none"``. What the function redacts, with
        ``@task(redact=…)``, is never shown.
        """
        return f"{self.label}({redaction.show(self.func, self.args, self.kwargs, shown)})"


def ended(func: AnyCallable, result: Any) -> object:
    """Wait for the end of a call of ``func`` that returned ``result``; see :meth:`Call.run`."""
    while result is not None:
        if inspect.isawaitable(result):
            result = run(result)
        elif _is_of_an_executor(result):
            result = result.result()
        elif hasattr(result, "get_result") and hasattr(result, "check_success"):
            result = result.get_result()
        else:
            _refuse_unstarted(func, result)
            break
    return result


def call(func: AnyCallable, /, *args: Any, **kwargs: Any) -> Call:
    """Return the call that ``defer`` with the same arguments would enqueue, checked but not enqueued.

    Keyword arguments with a leading underscore that name an option are options; see :func:`deferred_middleware.defer`.

    Raises:
        NotCallableError: ``func`` can't be called, or is a generator function.
        NotImportableError: ``func`` belongs to the ``__main__`` script.
        ArgumentsError: the arguments don't fit the signature of ``func``.
        UnknownOptionError: an ``_option`` that neither ``defer`` nor ``func`` knows.
        OptionError: an option's value can't be used.
    """
    if _is_plain(func) and _fits(func, args, kwargs):
        return Call(func=func, args=args, kwargs=kwargs)
    func = plain_method(func)
    check_kind(func)
    func = outside_main(func)
    kwargs = with_declared(func, kwargs)
    signature = _signature(func)
    options = NO_OPTIONS
    if any(name.startswith("_") for name in kwargs):
        options, kwargs = Options.take_from(kwargs, label_of(func), signature)
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            label = str(label_of(func))
            raise ArgumentsError(label, f"{label}{signature} can't be called with what was given: {error}.") from None
    return Call(func=func, args=args, kwargs=kwargs, options=options)


def _is_plain(func: AnyCallable) -> TypeGuard[types.FunctionType]:
    """Tell whether ``func`` is a function of a module that declares nothing."""
    return type(func) is types.FunctionType and not func.__dict__ and func.__module__ != "__main__"


def _fits(func: types.FunctionType, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell, in less time than binding them takes, whether there are arguments for a function and no options.

    False says only that it has to be looked at closely.
    """
    places, by_place, required, required_by_place = _plain_parameters(func)
    count = len(args)
    if count > by_place:
        return False
    missing = required - (count if count < required_by_place else required_by_place)
    for name in kwargs:
        place = places.get(name)
        if place is None or place[0] < count:
            return False
        missing -= place[1]
    return missing == 0


@functools.lru_cache(maxsize=1024)
def _plain_parameters(func: types.FunctionType) -> tuple[dict[str, tuple[int, bool]], int, int, int]:
    """Return what a function takes, if that is a list of names.

    For each name that is no option's its place and whether it is required; how many can be given by place, -1 for a
    function that takes anything else or is a generator's; how many are required; and how many of those by place.
    """
    if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
        return {}, -1, 0, 0
    places: dict[str, tuple[int, bool]] = {}
    by_place = all_required = required_by_place = 0
    for place, parameter in enumerate(_function_signature(func).parameters.values()):
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            return {}, -1, 0, 0
        required = parameter.default is parameter.empty
        all_required += required
        if not parameter.name.startswith("_"):
            places[parameter.name] = (place, required)
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            by_place += 1
            required_by_place += required
    return places, by_place, all_required, required_by_place


def _signature(func: AnyCallable) -> inspect.Signature | None:
    """Return the signature of ``func`` itself, not of what it wraps: a wrapper may add arguments of its own."""
    if isinstance(func, types.FunctionType):
        return _function_signature(func)
    try:
        return inspect.signature(func, follow_wrapped=False)
    except (ValueError, TypeError):
        return None  # some builtins have none


@functools.lru_cache(maxsize=1024)
def _function_signature(func: types.FunctionType) -> inspect.Signature:
    return inspect.signature(func, follow_wrapped=False)


def _is_of_an_executor(result: Any) -> TypeGuard[concurrent.futures.Future[object]]:
    # Where nobody has imported the module, nothing can be an instance of its class.
    module = sys.modules.get("concurrent.futures")
    return module is not None and isinstance(result, module.Future)


def _refuse_unstarted(func: AnyCallable, result: object) -> None:
    if inspect.isgenerator(result):
        code, started = result.gi_code, inspect.getgeneratorstate(result) != inspect.GEN_CREATED
    elif inspect.isasyncgen(result):
        code, started = result.ag_code, False
    else:
        return
    body = inspect.unwrap(func.__func__ if isinstance(func, types.MethodType) else func)
    if code is getattr(body, "__code__", None) and not started:
        raise NeverRanError(
            f"{label_of(func)} returned a generator, and none of its body ran. Defer a function "
            "that goes through it, such as one that does `for _ in f(): pass`."
        )

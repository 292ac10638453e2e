"""Compare a call that a test expects with the tasks that were enqueued."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import inspect
import pickle
import types
from collections.abc import Mapping, Sequence
from typing import Any

from deferred_middleware.calls.callables import AnyCallable, label_of
from deferred_middleware.calls.options import OPTION_NAMES
from deferred_middleware.errors import nearest
from deferred_middleware.errors.text import shortened
from deferred_middleware.testing.records import CapturedTask, describe

_MISSING = object()
# A test computes the ETA that it expects shortly before or after the task's own is computed.
ETA_TOLERANCE_SECONDS = 5.0
_OPTIONS = ("_queue", "_name", "_target", "_eta", "_countdown", "_times")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expectation:
    """A call, and those of its options that the test compares."""

    func: AnyCallable
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    options: Mapping[str, Any]

    @classmethod
    def from_arguments(cls, func: AnyCallable, args: tuple[object, ...], kwargs: Mapping[str, Any]) -> Expectation:
        """Return the expectation for the arguments of an assertion.

        Raises :class:`TypeError` for a naive ``_eta``, an option that can't be compared, a misspelt option, and
        arguments that don't fit the function's signature. An expectation with such a mistake would match no task.
        """
        __tracebackhide__ = True
        options = {name: value for name, value in kwargs.items() if name in _OPTIONS}
        own = {name: value for name, value in kwargs.items() if name not in _OPTIONS}
        signature = _signature(func)
        for name in own:
            if name.startswith("_"):
                _check_name(name, signature)
        if signature is not None and (args or own):
            try:
                signature.bind(*args, **own)
            except TypeError as error:
                raise TypeError(f"{label_of(func)}{signature} can't be called with these arguments: {error}.") from None
        if options.get("_eta") is not None and options["_eta"].utcoffset() is None:
            raise TypeError("_eta takes an aware datetime")
        return cls(func=func, args=args, kwargs=own, options=options)

    def differences(self, task: CapturedTask) -> list[str] | None:
        """Return one line of text for each difference of ``task``; None if it calls another function."""
        if task.func is None or not _is_same_callable(self.func, task.func):
            return None
        lines = _argument_differences(self, task)
        for option, found in (("_queue", task.queue), ("_name", task.name), ("_target", task.target)):
            if option in self.options and self.options[option] != found:
                lines.append(f"{option}: expected {self.options[option]!r}, enqueued with {found!r}")
        lines += self._eta_differences(task)
        return lines

    def _eta_differences(self, task: CapturedTask) -> list[str]:
        expected: datetime.datetime | None = self.options.get("_eta")
        countdown = self.options.get("_countdown")
        if countdown is not None:
            if isinstance(countdown, datetime.timedelta):
                countdown = countdown.total_seconds()
            expected = task.enqueued + datetime.timedelta(seconds=countdown)
        if expected is None or abs((task.eta - expected).total_seconds()) <= ETA_TOLERANCE_SECONDS:
            return []
        return [f"eta: expected {expected.isoformat()}, enqueued with {task.eta.isoformat()}"]

    def __str__(self) -> str:
        options = "".join(f", {name}={_value_text(value)}" for name, value in self.options.items() if name != "_times")
        return f"{describe(self.func, self.args, self.kwargs)}{options}"


def _check_name(name: str, signature: inspect.Signature | None) -> None:
    """Raise :class:`TypeError` unless ``name``, which starts with an underscore, is an argument of the function."""
    __tracebackhide__ = True
    parameters = {} if signature is None else signature.parameters
    if name in parameters:
        return
    if name in OPTION_NAMES:
        raise TypeError(f"{name} can't be compared by an assertion. Look at the task in deferred_tasks.enqueued.")
    takes_any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    suggestion = nearest(name, (*_OPTIONS, *OPTION_NAMES), similarity=0.75 if takes_any_name else 0.5)
    if takes_any_name and suggestion is None:
        return
    hint = f"Did you mean {suggestion}?" if suggestion else f"The options are {', '.join(_OPTIONS)}."
    raise TypeError(f"{name} is neither an option that is compared nor an argument of the function. {hint}")


def _signature(func: AnyCallable) -> inspect.Signature | None:
    try:
        return inspect.signature(func, follow_wrapped=False)
    except (TypeError, ValueError):
        return None  # some builtins have no signature


def _argument_differences(expected: Expectation, task: CapturedTask) -> list[str]:
    wanted, found = _arguments_by_name(expected.func, expected.args, expected.kwargs), None
    if wanted is not None:
        found = _arguments_by_name(expected.func, task.args, task.kwargs)
    if wanted is None or found is None:
        wanted, found = (
            _arguments_by_position(expected.args, expected.kwargs),
            _arguments_by_position(task.args, task.kwargs),
        )
    lines = []
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        lines += _difference(name, wanted.get(name, _MISSING), found.get(name, _MISSING))
    return lines


def _arguments_by_name(
    func: AnyCallable, args: Sequence[object], kwargs: Mapping[str, object]
) -> dict[str, object] | None:
    """Return the arguments by parameter name, so that ``f(1)`` equals ``f(x=1)``; None if they can't be bound."""
    signature = _signature(func)
    if signature is None:
        return None
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return dict(bound.arguments)


def _arguments_by_position(args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    return {**{f"args[{index}]": value for index, value in enumerate(args)}, **kwargs}


def _is_same_callable(one: object, other: object) -> bool:
    """Return whether two callables are the same, or are equal after one of them was pickled and unpickled."""
    if one == other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, types.MethodType) and isinstance(other, types.MethodType):
        return one.__func__ is other.__func__ and _is_same_object(one.__self__, other.__self__)
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return (
            _is_same_callable(one.func, other.func)
            and _is_equal(one.args, other.args)
            and _is_equal(dict(one.keywords), dict(other.keywords))
        )
    return not isinstance(one, (type, types.FunctionType, types.BuiltinFunctionType)) and _is_same_object(one, other)


def _is_same_object(one: object, other: object) -> bool:
    if _is_equal(one, other):
        return True
    return type(one) is type(other) and hasattr(one, "__dict__") and _is_equal(vars(one), vars(other))


def _difference(where: str, wanted: object, found: object) -> list[str]:
    if wanted is not _MISSING and found is not _MISSING and _is_equal(wanted, found):
        return []
    return [f"{where}: expected {_value_text(wanted)}, enqueued with {_value_text(found)}"]


def _is_equal(one: object, other: object) -> bool:
    """Return whether two arguments are equal. Arrays are, if they have the same type and their pickles are the same."""
    with contextlib.suppress(Exception):  # the user's __eq__ may raise anything; arrays have no single truth value
        return bool(one == other)
    try:
        return type(one) is type(other) and pickle.dumps(one) == pickle.dumps(other)
    except Exception:  # noqa: BLE001 - what a test expects may be unpicklable, as no enqueued argument is
        return False


def _value_text(value: object) -> str:
    if value is _MISSING:
        return "nothing"
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - the user's __repr__ may raise anything, and a huge int has no text
        return shortened(value)


def mismatch_message(expected: Expectation, times: int, matching: int, tasks: Sequence[CapturedTask]) -> str:
    """Return the message for a failed expectation, with the tasks that were enqueued, the most similar first."""
    wanted = "was not enqueued" if not matching and times == 1 else f"was enqueued {matching} times, not {times}"
    lines = [f"{expected} {wanted}."]
    if not tasks:
        return "\n".join([*lines, "Nothing was enqueued."])
    near, others = [], []
    for task in tasks:
        differences = expected.differences(task)
        if differences is None:
            others.append(f"  {task}")
        elif differences:
            near.append((len(differences), [f"  {task}", *(f"    {line}" for line in differences)]))
        else:
            near.append((0, [f"  {task}"]))
    if near:
        near.sort(key=lambda item: item[0])
        lines.append("It was enqueued as:")
        lines += [line for _, entry in near for line in entry]
    if others:
        lines += ["Other tasks were enqueued:" if near else "These tasks were enqueued:", *others]
    return "\n".join(lines)

"""Compare what a test expects to be enqueued with what was."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any

from deferred_middleware.calls.callables import AnyCallable
from deferred_middleware.testing.records import EnqueuedTask, describe

_MISSING = object()
# An ETA that a test expects is computed a moment before or after the one that was enqueued.
ETA_TOLERANCE_SECONDS = 5.0
_KNOWN = ("_queue", "_name", "_target", "_eta", "_countdown", "_times")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expectation:
    """A call, and as much of its options as the test cares about."""

    func: AnyCallable
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, func: AnyCallable, args: tuple[object, ...], kwargs: Mapping[str, Any]) -> Expectation:
        """Split what an assertion was given into the call's own arguments and options.

        Raises :class:`TypeError` for an option that can't be expected.
        """
        options = {name: value for name, value in kwargs.items() if name in _KNOWN}
        own = {name: value for name, value in kwargs.items() if name not in _KNOWN}
        if options.get("_eta") is not None and options["_eta"].utcoffset() is None:
            raise TypeError("_eta takes an aware datetime")
        return cls(func=func, args=args, kwargs=own, options=options)

    def differences(self, task: EnqueuedTask) -> list[str] | None:
        """Return in what ``task`` differs, each a line for people; None when it calls something else."""
        if task.func is None or not _same_callable(self.func, task.func):
            return None
        lines = _differences_of_arguments(self, task)
        for option, found in (("_queue", task.queue), ("_name", task.name), ("_target", task.target)):
            if option in self.options and self.options[option] != found:
                lines.append(f"{option}: expected {self.options[option]!r}, enqueued with {found!r}")
        lines += self._difference_of_eta(task)
        return lines

    def _difference_of_eta(self, task: EnqueuedTask) -> list[str]:
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
        options = "".join(f", {name}={value!r}" for name, value in self.options.items() if name != "_times")
        return f"{describe(self.func, self.args, self.kwargs)}{options}"


def _differences_of_arguments(expected: Expectation, task: EnqueuedTask) -> list[str]:
    wanted, found = _by_parameter(expected.func, expected.args, expected.kwargs), None
    if wanted is not None:
        found = _by_parameter(expected.func, task.args, task.kwargs)
    if wanted is None or found is None:
        wanted, found = _by_place(expected.args, expected.kwargs), _by_place(task.args, task.kwargs)
    lines = []
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        lines += _difference(name, wanted.get(name, _MISSING), found.get(name, _MISSING))
    return lines


def _by_parameter(func: AnyCallable, args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object] | None:
    """Return the arguments by the names of their parameters, so that ``f(1)`` and ``f(x=1)`` are the same call."""
    try:
        bound = inspect.signature(func, follow_wrapped=False).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return None
    bound.apply_defaults()
    return dict(bound.arguments)


def _by_place(args: Sequence[object], kwargs: Mapping[str, object]) -> dict[str, object]:
    return {**{f"args[{index}]": value for index, value in enumerate(args)}, **kwargs}


def _same_callable(one: object, other: object) -> bool:
    """Tell whether two callables are the same one; what was pickled with it is another object, so it is looked into."""
    if one == other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, types.MethodType) and isinstance(other, types.MethodType):
        return one.__func__ is other.__func__ and _same_object(one.__self__, other.__self__)
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        return _same_callable(one.func, other.func) and one.args == other.args and dict(one.keywords) == other.keywords
    return not isinstance(one, (type, types.FunctionType, types.BuiltinFunctionType)) and _same_object(one, other)


def _same_object(one: object, other: object) -> bool:
    if one == other:
        return True
    return type(one) is type(other) and hasattr(one, "__dict__") and vars(one) == vars(other)


def _difference(where: str, wanted: object, found: object) -> list[str]:
    if wanted is not _MISSING and found is not _MISSING and wanted == found:
        return []
    return [f"{where}: expected {_shown(wanted)}, enqueued with {_shown(found)}"]


def _shown(value: object) -> str:
    return "nothing" if value is _MISSING else repr(value)


def mismatch(expected: Expectation, times: int, matching: int, tasks: Sequence[EnqueuedTask]) -> str:
    """Say why an expectation fails: what was enqueued instead, the nearest first."""
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
        lines += ["Enqueued besides:" if near else "Enqueued was:", *others]
    return "\n".join(lines)

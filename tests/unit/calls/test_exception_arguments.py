"""Tests of exceptions as arguments: those that can't be unpickled are refused by ``defer()``, the others travel."""

from __future__ import annotations

import builtins
import collections
import dataclasses
import datetime
import functools
import pickle
import urllib.error
from collections.abc import Callable
from email.message import Message
from typing import Any, NamedTuple
from unittest import mock

import pytest

from deferred_middleware import UnpicklableArgumentError, call
from deferred_middleware.calls import exception_arguments, payload
from tests.support import sample


class Declined(Exception):
    """Passes fewer arguments to its base than it takes."""

    def __init__(self, order: int, reason: str) -> None:
        super().__init__(reason)
        self.order = order


class OnlyKeywords(Exception):
    """Takes only keyword arguments."""

    def __init__(self, *, code: int) -> None:
        super().__init__(code)


class HostileText(Exception):
    """Its constructor raises an error that has no text."""

    def __init__(self, one: object, two: object) -> None:
        super().__init__(one)
        if two is None:
            raise self

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __reduce__(self) -> Any:
        return HostileText, (1, None)


class Sound(Exception):
    """Takes other arguments than it passes to its base, and says how it is made."""

    def __init__(self, order: int, reason: str) -> None:
        super().__init__(reason)
        self.order = order

    def __reduce__(self) -> Any:
        return Sound, (self.order, *self.args)


class NewNeedsMore(Exception):
    """Its ``__new__`` takes an argument that its ``args`` lack."""

    def __new__(cls, one: object, two: object) -> NewNeedsMore:
        """Return an exception with one argument."""
        made = super().__new__(cls)
        made.args = (one,)
        return made

    def __init__(self, *args: object) -> None:
        pass


def http_error() -> Exception:
    """Return an error of the standard library that can't be unpickled."""
    return urllib.error.HTTPError("http://x", 404, "no", Message(), None)


def refused(value: object, protocol: int = 5) -> UnpicklableArgumentError:
    """Return the error of deferring a call with ``value``."""
    with pytest.raises(UnpicklableArgumentError) as caught:
        payload.dumps(call(sample.note, 1, value), protocol)
    return caught.value


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "exception",
    [Declined(1, "x"), OnlyKeywords(code=1), HostileText(1, 2), NewNeedsMore(1, 2), http_error()],
    ids=lambda exception: type(exception).__name__,
)
def test_an_exception_that_cannot_be_loaded_is_refused(exception: Exception, protocol: int) -> None:
    """The error has the argument's path and the exception's class, in every protocol."""
    if isinstance(exception, NewNeedsMore) and protocol < 2:
        protocol = 2
    error = refused(exception, protocol)

    assert error.path == "args[1]"
    assert f"args[1]: {type(exception).__name__} pickles but can't be unpickled" in str(error)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ([1, Declined(7, "x")], "args[1][1]"),
        ({"error": (Declined(7, "x"),)}, "args[1]['error'][0]"),
        (sample.Holder(error=Declined(7, "x")), "args[1].error"),
        (ValueError(Declined(7, "x")), "args[1]"),
    ],
)
def test_the_path_leads_to_the_exception(value: object, path: str) -> None:
    """An exception is found in containers, in attributes and inside another exception."""
    assert refused(value).path == path


def test_a_keyword_argument_and_a_partials_argument_are_searched() -> None:
    """The path names the keyword; the arguments inside the callable are called the call."""
    with pytest.raises(UnpicklableArgumentError) as caught:
        payload.dumps(call(sample.note, error=Declined(1, "x")), 5)
    assert caught.value.path == "kwargs['error']"

    with pytest.raises(UnpicklableArgumentError, match="the call can't be run: Declined pickles but") as caught:
        payload.dumps(call(functools.partial(sample.note, Declined(1, "x"))), 5)
    assert caught.value.path == "the call"


@pytest.mark.parametrize(
    "exception",
    [
        ValueError("x", 1),
        OSError(2, "no such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        KeyError(),
        SystemExit(3),
        StopIteration(4),
        Sound(1, "x"),
        ImportError("x", name="y"),
    ],
    ids=lambda exception: type(exception).__name__,
)
def test_other_exceptions_travel(exception: BaseException) -> None:
    """An exception that can be unpickled is accepted, and arrives with its arguments."""
    arrived = payload.loads(payload.dumps(call(sample.note, [exception]), 5)).args[0][0]

    assert type(arrived) is type(exception)
    assert arrived.args == exception.args


def test_arguments_of_builtin_types_are_not_searched() -> None:
    """A call without objects is pickled once, whatever its arguments' size."""
    with mock.patch.object(exception_arguments, "exceptions_in", side_effect=AssertionError("was searched")):
        payload.dumps(call(sample.note, 1, "a", [2.5, {"b": (None, True)}], b"x" * 100_000), 5)
        with pytest.raises(UnpicklableArgumentError, match="was searched"):
            payload.dumps(call(sample.note, datetime.date(2030, 1, 1)), 5)


@dataclasses.dataclass
class Report:
    """Holds an error, as a dataclass."""

    error: object


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    """The same, with slots."""

    error: object


class Pair(NamedTuple):
    """The same, as a named tuple."""

    number: int
    error: object


class Stateful:
    """Pickles what its ``__getstate__`` returns."""

    def __init__(self, error: object) -> None:
        self.error = error

    def __getstate__(self) -> object:
        return {"renamed": self.error}


class Made:
    """Is made again by a function that takes the error."""

    def __init__(self, error: object) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return Made, (self.error,)


def with_attribute(exception: Exception) -> Exception:
    """Return an exception that has another one as an attribute."""
    outer = ValueError("outer")
    outer.inner = exception  # type: ignore[attr-defined]
    return outer


def with_cause(exception: Exception) -> Exception:
    """Return an exception whose cause, context and traceback are set."""
    try:
        try:
            raise exception
        except Exception as error:
            raise ValueError("outer") from error
    except ValueError as outer:
        return outer


HOLDERS: dict[str, Callable[[Exception], object]] = {
    "a dataclass": Report,
    "a dataclass with slots": Slotted,
    "a named tuple": lambda error: Pair(1, error),
    "a state": Stateful,
    "the arguments of a function": Made,
    "a set": lambda error: {error},
    "a frozen set": lambda error: frozenset([error]),
    "the key of a dictionary": lambda error: {error: 1},
    "a deque": lambda error: collections.deque([1, error]),
    "a defaultdict": lambda error: collections.defaultdict(list, {"x": [error]}),
    "an OrderedDict": lambda error: collections.OrderedDict(x=error),
    "a partial": lambda error: functools.partial(sample.note, error),
    "a bound method": lambda error: Report(error).__repr__,
    "an attribute of an exception": with_attribute,
    "another exception": lambda error: ValueError([{"deep": (error,)}]),
    "a long list": lambda error: [*range(5000), error],
}
GROUP: Any = getattr(builtins, "ExceptionGroup", None)
"""The class for several exceptions, from Python 3.11 on."""
if GROUP is not None:
    HOLDERS["a group"] = lambda error: GROUP("several", [ValueError(1), error])
    HOLDERS["a group in a group"] = lambda error: GROUP("outer", [GROUP("inner", [error])])


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_exception_is_found_wherever_it_is(holder: str) -> None:
    """An exception that can't be unpickled is refused in any holder, and a sound one in the same place travels."""
    error = refused(HOLDERS[holder](Declined(7, "x")))
    assert error.path.startswith("args[1]")
    assert "can't be unpickled" in str(error)

    content = payload.loads(payload.dumps(call(sample.note, 1, HOLDERS[holder](Sound(7, "x"))), 5))
    assert content.args[0] == 1


def test_what_pickle_leaves_out_is_not_refused() -> None:
    """The cause, the context and the traceback of an exception are not pickled, so they may be anything."""
    (_, error) = payload.loads(payload.dumps(call(sample.note, 1, with_cause(Declined(7, "x"))), 5)).args

    assert (type(error), error.args, error.__cause__) == (ValueError, ("outer",), None)

"""Tests of results and callables whose attributes have side effects: they are looked at, and not asked."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from deferred_middleware import call
from deferred_middleware.calls import payload
from deferred_middleware.calls.call import Call
from deferred_middleware.errors import DeferredError, NotImportableError
from tests.support import sample

asked: list[str] = []


class Row(dict[str, int]):
    """Raises KeyError for each attribute that it lacks."""

    def __getattr__(self, name: str) -> int:
        asked.append(name)
        return self[name]


class Remote:
    """Has every attribute, at the price of a request to a server."""

    def __getattr__(self, name: str) -> Any:
        asked.append(name)
        return Remote()

    def __getstate__(self) -> None:
        """Return that there is no state; before Python 3.11 pickle would ask the instance for this method."""
        return

    def __call__(self, *args: object) -> Any:
        """Note the arguments."""
        sample.ran.append(args)
        return Remote()


class Strict(Remote):
    """Raises KeyError for each attribute that it lacks, and can be called."""

    def __getattr__(self, name: str) -> Any:
        asked.append(name)
        raise KeyError(name)


class FalseClass:
    """Raises when it is asked for its class."""

    @property
    def __class__(self) -> Any:
        """Raise."""
        asked.append("__class__")
        raise RuntimeError

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise RuntimeError


@pytest.fixture(autouse=True)
def nothing_is_asked() -> Iterator[None]:
    """Fail if an attribute was asked for."""
    asked.clear()
    yield
    assert [name for name in asked if name not in _PICKLES] == []


# pickle itself looks these up.
_PICKLES = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs_ex__", "__getnewargs__", "__setstate__")

RESULTS = {
    "row": Row(id=1),
    "remote": Remote(),
    "strict": Strict(),
    "false class": FalseClass(),
    "mock": mock.MagicMock(),
    "plain mock": mock.Mock(),
    "mock of a future": mock.MagicMock(spec=types.CoroutineType),
    "a class": Remote,
    "a module": mock,
    "text": "text",
}


@pytest.mark.parametrize("name", RESULTS)
def test_any_other_result_is_a_finished_task(name: str) -> None:
    """A result that is no Future of a known class is returned as it is."""
    result = RESULTS[name]

    assert Call(func=lambda: result).run() is result


CALLABLES = {"remote": Remote(), "strict": Strict(), "partial": functools.partial(Strict(), 1)}


@pytest.mark.parametrize("name", CALLABLES)
def test_a_callable_is_not_asked(name: str) -> None:
    """A callable instance is checked, described, pickled and run without a request to it."""
    func: Any = CALLABLES[name]
    made = call(func, 2)
    assert made.describe()
    loaded = payload.loads(payload.dumps(made, 5))
    loaded.run()

    assert sample.ran[-1][-1] == 2


def function(first: object) -> None:
    """Stand for a function of the app."""


class Owner:
    """Has a method."""

    def method(self) -> None:
        """Do nothing."""


def mocks() -> dict[str, Any]:
    """Return mocks of each kind."""
    bound = Owner()
    with mock.patch.object(Owner, "method", autospec=True):
        method = bound.method
    return {
        "MagicMock": mock.MagicMock(),
        "Mock": mock.Mock(),
        "AsyncMock": mock.AsyncMock(),
        "with a spec": mock.MagicMock(spec=function),
        "autospec": mock.create_autospec(function),
        "autospec of a class": mock.create_autospec(Owner),
        "its method": mock.create_autospec(Owner)().method,
        "a method with autospec": method,
        "a partial": functools.partial(mock.MagicMock(), 1),
    }


@pytest.mark.parametrize("name", mocks())
def test_a_mock_as_the_callable_is_an_error_that_says_so(name: str) -> None:
    """A mock can't be deferred, and the error says that it is one, also when a Call is made by hand."""
    func = mocks()[name]

    with pytest.raises(NotImportableError, match="is a mock"):
        call(func, 1)
    with pytest.raises(DeferredError, match="is a mock"):
        payload.dumps(Call(func=func), 5)

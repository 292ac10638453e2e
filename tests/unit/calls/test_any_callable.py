"""Tests that the deferred callable is the one that runs, for callables and arguments of every kind."""

from __future__ import annotations

import functools
import json
import math
import operator
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from deferred_middleware import DeferredMiddleware, call, defer
from deferred_middleware.calls.payload import dumps, loads
from deferred_middleware.testing import capture_tasks
from tests.support import payloads, zoo
from tests.support.repository import ROOT

DATA = Path(__file__).parent / "data"
STORED = DATA / "payloads"
"""Payloads that each supported version of Python wrote."""
OLDER = DATA / "payloads-0.1.0-dev"
"""The same from commit 11c1529, where ``tests.support.zoo`` was a module ``zoo``. Don't write them anew."""

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        | st.frozensets(st.integers(), max_size=4)
        | st.builds(zoo.Frozen, st.text(max_size=8))
    ),
    max_leaves=8,
)
# Any name that can't be an option, including parameter names of the library and of wrappers.
names = st.text(min_size=1, max_size=8).filter(lambda name: not name.startswith("_")) | st.sampled_from(
    ["self", "cls", "func", "args", "kwargs", "call", "obj", "membername", "first"]
)
arguments = st.tuples(st.lists(plain, max_size=3), st.dictionaries(names, plain, max_size=3))


class Recipe:
    """A callable, its arguments, and the expected return value."""

    def __init__(self, kind: str, state: str, layers: list[tuple[list[Any], dict[str, Any]]]) -> None:
        self.func, *told = zoo.KINDS[kind](state)
        *partials, (args, kwargs) = layers
        bound: tuple[list[Any], dict[str, Any]] = ([], {})
        for more_args, more_kwargs in partials:
            self.func = functools.partial(self.func, *more_args, **more_kwargs)
            bound = (bound[0] + more_args, bound[1] | more_kwargs)
        self.args, self.kwargs = args, kwargs
        self.returns = (*told, (*bound[0], *args), bound[1] | kwargs)


def innermost(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return the callable inside nested partials."""
    while isinstance(func, functools.partial):
        func = func.func
    return func


def fits(recipe: Recipe) -> bool:
    """Return whether Python accepts this call; a name may collide with one of the callable's own arguments."""
    try:
        result = recipe.func(*recipe.args, **recipe.kwargs)
    except TypeError:
        return False
    if hasattr(result, "close"):
        result.close()  # close an unused coroutine
    return True


recipes = st.builds(
    Recipe,
    st.sampled_from(sorted(zoo.KINDS)),
    st.text(max_size=8),
    st.lists(arguments, min_size=1, max_size=3),
).filter(fits)


@given(recipe=recipes, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_what_runs_is_what_was_deferred(recipe: Recipe, protocol: int) -> None:
    """A loaded call runs to its end, with the same state and arguments as the original."""
    assume(protocol >= 2 or not isinstance(innermost(recipe.func), zoo.Slotted))  # pickle itself refuses these
    loaded = loads(dumps(call(recipe.func, *recipe.args, **recipe.kwargs), protocol))

    assert loaded.run() == recipe.returns


class Outcomes:
    """A hook that records the outcomes of tasks."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def after_task(self, context: Any, outcome: Any) -> None:
        """Record the task's label, as the handler knows it, and its outcome."""
        self.labels.append(f"{context.label}: {outcome.value}")


@given(recipe=recipes)
@example(recipe=Recipe("tasklet", "", [([1], {"self": 2})]))
def test_every_kind_goes_through_the_middleware(recipe: Recipe) -> None:
    """For each kind of callable, the URL names it, and the handler accepts the payload for that URL."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        raise AssertionError("no task reaches the app")

    outcomes = Outcomes()
    with capture_tasks(DeferredMiddleware(app, hooks=[outcomes])) as tasks:
        defer(recipe.func, *recipe.args, **recipe.kwargs)
        assert tasks.run().ok
        (enqueued,) = tasks.enqueued

    assert enqueued.url.startswith(f"/_cb/deferred/{zoo.__name__}/")
    assert outcomes.labels == [f"{enqueued.label}: done"]


@pytest.mark.parametrize(
    ("func", "args", "returns", "label"),
    [
        (math.hypot, (3, 4), 5.0, "math/hypot"),
        (len, ("four",), 4, "builtins/len"),
        ("text".upper, (), "TEXT", "builtins/str.upper"),
        (str.upper, ("text",), "TEXT", "builtins/str.upper"),
        ("text".__len__, (), 4, "builtins/str.__len__"),
        (str.__len__, ("text",), 4, "builtins/str.__len__"),
        (dict.fromkeys, ("ab", 1), {"a": 1, "b": 1}, "builtins/dict.fromkeys"),
        (dict, ([("a", 1)],), {"a": 1}, "builtins/dict"),
        (operator.itemgetter(1), ("ab",), "b", "operator/itemgetter"),
        (operator.methodcaller("split", "-"), ("a-b",), ["a", "b"], "operator/methodcaller"),
        (functools.partial(pow, 2), (5,), 32, "builtins/pow"),
        (zoo.cached, (), ("cached", "", (), {}), "tests.support.zoo/cached"),
        (zoo.dispatched, (1,), ("dispatched", "", (1,), {}), "tests.support.zoo/dispatched"),
        (zoo.Base("x").half, (1,), ("method", "x", ("half", 1), {}), "tests.support.zoo/Base.method"),
    ],
)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_itself_offers_to_call(
    func: Callable[..., Any], args: tuple[Any, ...], returns: object, label: str, protocol: int
) -> None:
    """Builtins, bound and unbound methods, and callables from functools and operator run under a sensible label."""
    made = call(func, *args)

    assert str(made.label) == label
    assert loads(dumps(made, protocol)).run() == returns


@pytest.mark.parametrize(
    "file", sorted([*STORED.iterdir(), *OLDER.iterdir()]), ids=lambda file: f"{file.parent.name}/{file.stem}"
)
def test_what_another_version_wrote_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload from each supported version of Python runs on this one, for each kind of callable."""
    if file.parent == OLDER:
        monkeypatch.setitem(sys.modules, "zoo", zoo)
    stored = json.loads(file.read_text())

    assert len(stored) == len(zoo.KINDS) * len(payloads.PROTOCOLS)
    assert list(payloads.differences(stored)) == []


@pytest.mark.parametrize("folder", [STORED, OLDER], ids=lambda folder: folder.name)
def test_a_payload_of_each_version_is_stored(folder: Path) -> None:
    """There is a stored payload for each Python version that setup.cfg lists."""
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text())

    assert sorted(file.stem for file in folder.iterdir()) == [f"python-{version}" for version in named]

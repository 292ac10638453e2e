"""Tests of the search for the part of an argument that can't be pickled."""

from __future__ import annotations

import pickle
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.calls.payload import find_unpicklable, mentions_main
from tests.support import sample


def found(value: object) -> tuple[str, str]:
    """Return the description of what can't be pickled in ``value``."""
    result = find_unpicklable({"args[0]": value}, main_is_wrong=False)
    assert result is not None
    return result


class Slotted:
    """Keeps its attributes in slots."""

    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (threading.Lock(), "args[0]", "lock"),
        ([1, [2, threading.Lock()]], "args[0][1][1]", "lock"),
        ({"a": {"b": (threading.Lock(),)}}, "args[0]['a']['b'][0]", "lock"),
        (sample.Holder(session=sample.Holder(lock=threading.Lock())), "args[0].session.lock", "lock"),
        (Slotted(), "args[0].lock", "lock"),
        ((n for n in "ab"), "args[0]", "generator"),
        ({"f": sample.anonymous}, "args[0]['f']", "function"),
    ],
)
def test_the_smallest_part_is_named(value: object, path: str, kind: str) -> None:
    """The path leads through containers, attributes and slots to the smallest unpicklable part, with its type."""
    where, problem = found(value)

    assert where == path
    assert problem.startswith(f": {kind} can't be pickled")
    assert problem.endswith("open or load it in the task.")


def test_a_socket_deep_inside_is_named() -> None:
    """The manual's example works: a socket in an object's attribute is named."""
    with socket.socket() as connection:
        assert found(sample.Holder(session=connection))[0] == "args[0].session"


def test_a_file_is_named(tmp_path: Any) -> None:
    """An open file is named with its type."""
    with (tmp_path / "f").open("w") as file:
        path, problem = found([file])

    assert path == "args[0][0]"
    assert problem.startswith(": TextIOWrapper can't be pickled (cannot pickle '")  # the rest is Python's, by version
    assert problem.endswith("). Pass what identifies it (a key, an id, a path) and open or load it in the task.")


def test_nesting_too_deep_is_said() -> None:
    """A nesting of 20,000 levels, which is too deep for pickle, is reported and doesn't crash the search."""
    nested: list[Any] = []
    for _ in range(20_000):
        nested = [nested]

    where, problem = found(nested)

    assert where == "args[0]"
    assert "nested too deep" in problem
    while nested:  # dismantle it iteratively, because deallocation recurses too
        nested = nested.pop()


def test_all_well_is_none() -> None:
    """If everything can be pickled, find_unpicklable returns None."""
    assert find_unpicklable({"args[0]": {"a": [1, 2]}}, main_is_wrong=False) is None


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_reference_to_main_is_found_in_every_protocol(protocol: int) -> None:
    """A class of __main__ is found by its opcodes, whether it is named directly or from the memo."""
    import __main__

    first = type("First", (), {"__module__": "__main__"})
    second = type("Second", (), {"__module__": "__main__"})
    __main__.First, __main__.Second = first, second
    try:
        assert mentions_main(pickle.dumps(("__main__", [first(), second()]), protocol))
    finally:
        del __main__.First, __main__.Second


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@given(text=st.lists(st.sampled_from(["__main__", "__main__ x", "note", sample.__name__]), max_size=6))
def test_the_name_alone_is_no_reference(protocol: int, text: list[str]) -> None:
    """Strings that contain __main__ don't count as references, even between real references."""
    value = (sample.note, *text, sample.pair, text, sample.Mailer("__main__"))

    assert not mentions_main(pickle.dumps(value, protocol))

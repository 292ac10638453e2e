"""How a payload is displayed without unpickling it, whatever it contains."""

from __future__ import annotations

import ast
import collections
import dataclasses
import datetime
import decimal
import functools
import json
import pickle
import sys
import zlib
from typing import Any

import pytest
from google.appengine.ext import deferred
from hypothesis import example, given
from hypothesis import strategies as st

from deferred_middleware.server.admin.pickle_text import MAX_CHARACTERS, render
from deferred_middleware.server.admin.views import MAX_BODY_BYTES, PayloadView, task_details, view_of
from deferred_middleware.wire import protocol
from deferred_middleware.wire.pickle_tree import MAX_OPCODES, sketch
from tests.support.storing import TASK

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
UTC = datetime.timezone.utc


class Mailer:
    """A class whose method the tests defer."""

    def __init__(self, host: str) -> None:
        self.host = host

    def send(self, to: str) -> None:
        """Do nothing."""


class Explosive:
    """An object that ends the process if it is unpickled."""

    def __reduce__(self) -> Any:
        return sys.exit, ("unpickled!",)


def view(func: object, *args: object, protocol: int = 5, **kwargs: object) -> PayloadView:
    """Return the view of a call."""
    return view_of(pickle.dumps((func, args, kwargs), protocol))


@pytest.mark.parametrize("number", PROTOCOLS)
def test_a_call_is_shown_as_python_writes_it(number: int) -> None:
    """A call's callable and arguments are shown as Python source, for every pickle protocol."""
    shown = view(collections.deque, 42, "it's", None, [1.5, {"a": b"b"}], protocol=number, maxlen=True)
    assert shown.kind == "call"
    assert shown.callable == "collections.deque"
    # Protocols before 3 have no opcode for bytes; they pickle a call that builds them.
    as_bytes = "b'b'" if number > 2 else "_codecs.encode('b', 'latin1')"
    assert shown.args == ["42", '"it\'s"', "None", f"[1.5, {{'a': {as_bytes}}}]"]
    assert shown.kwargs == {"maxlen": "True"}
    assert shown.text == f"collections.deque({', '.join(shown.args)}, maxlen=True)"
    assert (shown.problem, shown.compressed) == (None, False)


LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=50)
    | st.binary(max_size=50),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.tuples(inner)
        | st.just(())
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
        | st.sets(st.integers(), min_size=1, max_size=3)
    ),
    max_leaves=20,
)


@given(LITERALS, st.sampled_from([4, 5]))
@example([(1,), (), {2}], 4)
def test_what_is_shown_of_literals_is_what_they_are(value: object, number: int) -> None:
    """The displayed text of nested literals evaluates to an equal value."""
    node = sketch(pickle.dumps(value, number)).node
    assert node is not None
    text = render(node, max_characters=10**9)
    assert ast.literal_eval(text) == value


@pytest.mark.parametrize("number", PROTOCOLS)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime.date(2026, 1, 2), "datetime.date(2026, 1, 2)"),
        (datetime.datetime(2026, 1, 2, 3, 4), "datetime.datetime(2026, 1, 2, 3, 4)"),
        (datetime.timedelta(hours=1), "datetime.timedelta(0, 3600, 0)"),
        (decimal.Decimal("1.50"), "decimal.Decimal('1.50')"),
        (collections.OrderedDict(a=1), "collections.OrderedDict() with {{'a': 1}}"),
        (functools.partial(len, [1]), "functools.partial(len, [1])"),
        (functools.partial(Mailer, host="x"), "functools.partial({module}.Mailer, host='x')"),
        (Mailer("x"), "{module}.Mailer() with {{'host': 'x'}}"),
        (len, "len"),
        (set(), "set()"),
        (frozenset([1]), "frozenset({{1}})"),
    ],
)
def test_what_is_not_literal_is_shown_as_it_is_made(value: object, expected: str, number: int) -> None:
    """Dates, partials and objects are shown as the call that builds them, with the state that is set afterwards."""
    shown = view(print, value, protocol=number)
    if number < 4 and isinstance(value, (set, frozenset, datetime.datetime, datetime.date)):
        # These protocols pickle such values as calls of their types, with various arguments.
        assert type(value).__name__ in shown.args[0]
    else:
        assert shown.args == [expected.format(module=__name__)]


def test_a_method_is_shown_with_its_object() -> None:
    """A bound method, pickled by this library or the older one, is shown as an attribute of its object."""
    mailer = f"{__name__}.Mailer() with {{'host': 'x'}}"
    assert view(Mailer("x").send, "you").text == f"{mailer}.send('you')"
    assert view_of(deferred.serialize(Mailer("x").send, "you")).text == f"{mailer}.send('you')"


def test_a_django_task_is_shown_as_its_function() -> None:
    """The payload of a task of Django's is shown as a call of the task's function."""
    loader = b"\x80\x02cdeferred_middleware.contrib.django.backend\nload_task\n"
    shown = view_of(loader + b"X\x0e\0\0\0shop.mail.send}\x86RK\x07\x85}\x87.")

    assert (shown.text, shown.callable, shown.args) == ("shop.mail.send(7)", "shop.mail.send", ["7"])
    odd = view_of(loader + b"X\x04\0\0\0a\nb.}\x86RK\x07\x85}\x87.")
    assert odd.text == "<name '' of 'a\\nb'>(7)"


def test_nothing_is_unpickled() -> None:
    """Viewing a payload doesn't unpickle it, so a payload that would end the process is harmless."""
    shown = view(Explosive(), Explosive())
    assert shown.text == "sys.exit('unpickled!')(sys.exit('unpickled!'))"


def test_what_holds_itself_ends() -> None:
    """A list that contains itself is shown with an ellipsis, as Python shows it."""
    loop: list[object] = [1]
    loop.append(loop)
    assert view(print, loop).args == ["[1, …]"]


def test_a_deep_one_ends() -> None:
    """A very deep nesting is cut off without an error."""
    deep: object = "bottom"
    for _ in range(100):
        deep = [deep]
    assert "…" in view(print, deep).args[0]


def test_a_small_pickle_of_a_large_thing_is_cut_off() -> None:
    """A small pickle that would expand to a huge text is cut off."""
    laughs: object = ["ha"] * 10
    for _ in range(20):
        laughs = [laughs] * 10
    shown = view(print, laughs)
    assert MAX_CHARACTERS - 100 < len(shown.text) < MAX_CHARACTERS + 1000
    assert shown.text.count("…") >= 1


def test_many_arguments_are_cut_off_together() -> None:
    """The length limit applies to all arguments together, and the view says that some are left out."""
    shown = view(print, *range(20_000), last=1)
    assert len(shown.text) < MAX_CHARACTERS * 2
    assert shown.problem == "it is too long to be shown as a whole"


def test_long_literals_are_cut_off() -> None:
    """A long string is shown as its beginning and its length; a huge number is not converted to digits."""
    shown = view(print, "x" * 5000, 1 << 100_000)
    assert shown.args[0].endswith("… (5,000 characters)")
    assert shown.args[1] == "<a whole number of 100,001 bits>"


def test_a_compressed_call_is_shown() -> None:
    """A compressed payload is decompressed for display."""
    shown = view_of(zlib.compress(pickle.dumps((print, (1,), {}))))
    assert (shown.text, shown.compressed, shown.problem) == ("print(1)", True, None)


def test_a_compressed_one_is_unpacked_as_far_as_may_be() -> None:
    """Decompression for display stops at a limit, so a few bytes can't expand to gigabytes."""
    shown = view_of(zlib.compress(b"x" * (MAX_BODY_BYTES + 1)))
    assert shown.problem is not None
    assert "the decompressed payload has more than" in shown.problem


@pytest.mark.parametrize(
    ("cut", "more", "expected"),
    [(-4, b"", "the compressed payload is cut off"), (None, b"abc", "3 bytes follow the compressed payload")],
)
def test_a_damaged_compressed_one_says_so(cut: int | None, more: bytes, expected: str) -> None:
    """If compressed data is damaged, the view shows the readable part and the error."""
    shown = view_of(zlib.compress(pickle.dumps((print, (1,), {})))[:cut] + more)
    assert shown.problem == expected
    assert shown.text == "print(1)"


def test_an_overflowed_one_is_named() -> None:
    """A reference to an overflow payload shows where the payload is stored."""
    shown = view_of(protocol.OVERFLOW_MAGIC + b'{"key":"abc","size":123}')
    assert (shown.kind, shown.text) == ("overflow", "kept in the datastore: key 'abc', size 123")
    damaged = view_of(protocol.OVERFLOW_MAGIC + b"{")
    assert damaged.problem == "the reference to a payload in the datastore is damaged"


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b"", "empty", ""),
        (b"id=1&x=2", "text", "id=1&x=2"),
        ("größer".encode(), "text", "größer"),
        (b"x marks", "text", "x marks"),
        (b"(as it were).", "text", "(as it were)."),
        (b"\x00\x01\x02\x03\x04", "bytes", "5 bytes: 00 01020304"),
        (b"\x1b[31mred", "bytes", "8 bytes: 1b5b3331 6d726564"),
        (pickle.dumps([1, 2]), "pickle", "[1, 2]"),
    ],
)
def test_other_bodies_are_shown_too(body: bytes, kind: str, text: str) -> None:
    """Text is shown as it is, with terminal control characters escaped; other bytes are shown in hexadecimal."""
    shown = view_of(body)
    assert (shown.kind, shown.text) == (kind, text)


def test_of_a_damaged_pickle_the_callable_is_shown() -> None:
    """A pickle that is truncated or has trailing bytes still shows its callable, and the view says what is wrong."""
    data = pickle.dumps((collections.deque, (1, 2), {}))
    cut = view_of(data[:-3])
    assert cut.kind == "pickle"
    assert cut.callable == "collections.deque"
    assert cut.problem is not None
    assert "can't be read to its end" in cut.problem
    assert view_of(data + b"xx").problem == "2 bytes follow the pickle"


def test_names_can_not_steer_the_terminal() -> None:
    """If a name in a pickle is not a valid identifier, it is shown escaped."""
    data = b"\x80\x04\x8c\x04\x1b[2J\x8c\x02\x07\n\x93."
    assert view_of(data).text == "<name '\\x07\\n' of '\\x1b[2J'>"


def test_a_long_pickle_is_not_walked_to_its_end() -> None:
    """The view examines a limited number of opcodes."""
    drawn = sketch(b"\x80\x02" + b"N0" * MAX_OPCODES + b"N.")
    assert drawn.problem == f"it has more than {MAX_OPCODES:,} opcodes"


VALID = pickle.dumps((collections.deque, ([1, "two", Mailer("x")], datetime.date(2026, 1, 2)), {"maxlen": 3}))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a valid payload with a few bytes changed."""
    data = bytearray(VALID)
    for _ in range(draw(st.integers(1, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@given(mutated() | st.binary(max_size=200).map(lambda data: b"\x80\x04" + data) | st.binary(max_size=100))
def test_whatever_it_is_there_is_a_view(body: bytes) -> None:
    """Any bytes give a view within the length limit, printable on one line, without an error."""
    shown = view_of(body)
    assert len(shown.text) < 8 * MAX_CHARACTERS + 1000
    if shown.kind != "text":
        assert shown.text.isprintable()


def test_the_reference_to_a_large_payload_may_be_nested_deep() -> None:
    """A reference whose JSON is nested too deep is damaged."""
    assert "damaged" in (view_of(protocol.OVERFLOW_MAGIC + b"[" * 100_000).problem or "")


def test_signatures_and_credentials_are_masked() -> None:
    """The details of a task show which key signed it, but nothing with which it can be sent again."""
    claims = f"v1;k={'0' * 16};i=1;e=2;n=3;t=0;b=4"
    headers = (
        ("X-Deferred-Signature", f"{claims};s=secret"),
        ("x-deferred-signature", "secret"),
        ("Authorization", "Bearer secret"),
        ("cookie", "secret"),
        ("X-Appengine-Api-Ticket", "secret"),
        ("X-Tenant", "a"),
    )
    task = dataclasses.replace(TASK, headers=headers)

    shown = task_details(task, [])

    assert "secret" not in json.dumps(shown)
    assert ["X-Deferred-Signature", f"{claims};s=…"] in shown["headers"]
    assert [name for name, _ in shown["headers"]] == [name for name, _ in headers]
    assert ["X-Tenant", "a"] in shown["headers"]

"""Tests of the list of allowed callables: what it accepts before and after a payload is loaded."""

from __future__ import annotations

import contextlib
import copyreg
import functools
import io
import logging
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.appengine.ext import deferred
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deferred_middleware import Call, CallError, DeferredMiddleware, NotAllowedError, Settings, call, defer, defer_many
from deferred_middleware.calls.allowlist import check_callable, check_payload
from deferred_middleware.calls.payload import content_of, dumps, loads
from deferred_middleware.config import process
from deferred_middleware.config.process import current_settings
from deferred_middleware.errors import TaskContentError
from tests.support import sample
from tests.support.delivering import Queued, request, task_environ
from tests.support.watching import watch

ann = sample.Mailer("ann")


class Outer:
    """Contains a class; pickle protocols before 4 reach its methods by nested getattr calls."""

    class Inner:
        """A nested class."""

        def method(self) -> None:
            """Record that it ran."""
            sample.ran.append("inner method")


# A callable, the entry that allows it, and a similar entry that doesn't.
KINDS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "function": (sample.pair, "tests.support.sample:pair", "tests.support.sample:note"),
    "of the module": (sample.pair, "tests.support.sample:*", "tests.support.samples:*"),
    "coroutine function": (sample.coroutine, "tests.support.sample:*", "tests.support.sample:coroutines"),
    "decorated": (sample.decorated, "tests.support.sample:*", "tests.support.sample:undecorated"),
    "class": (sample.Noting, "tests.support.sample:Noting", "tests.support.sample:*"),
    "bound method": (ann.send, "tests.support.sample:Mailer.send", "tests.support.sample:Mailer"),
    "bound method, not the module's": (ann.send, "tests.support.sample:Mailer.send", "tests.support.sample:*"),
    "class method": (sample.Mailer.build, "tests.support.sample:Mailer.build", "tests.support.sample:Mailer.send"),
    "static method": (sample.Mailer.static, "tests.support.sample:Mailer.static", "tests.support.sample:*"),
    "private method": (
        ann.secrets()[0],
        "tests.support.sample:Mailer._Mailer__secret",
        "tests.support.sample:Mailer.secret",
    ),
    "private static": (
        ann.secrets()[1],
        "tests.support.sample:Mailer._Mailer__secret_static",
        "tests.support.sample:*",
    ),
    "private class method": (
        ann.secrets()[2],
        "tests.support.sample:Mailer._Mailer__secret_build",
        "tests.support.sample:Mailer",
    ),
    "renamed method": (ann.renamed, "tests.support.sample:Mailer.renamed", "tests.support.sample:Mailer.wrapper"),
    "method of a class in a class": (Outer.Inner().method, f"{__name__}:Outer.Inner.method", f"{__name__}:Outer.Inner"),
    "callable object": (sample.Caller("c"), "tests.support.sample:Caller", "tests.support.sample:*"),
    "partial": (functools.partial(sample.pair, 1), "tests.support.sample:pair", "functools:partial"),
    "partial of the module's": (functools.partial(sample.pair, 1), "tests.support.sample:*", "functools:*"),
    "partial of a method": (
        functools.partial(ann.send, "bob"),
        "tests.support.sample:Mailer.send",
        "tests.support.sample:pair",
    ),
    "partial of a private method": (
        functools.partial(ann.secrets()[0]),
        "tests.support.sample:Mailer._Mailer__secret",
        "tests.support.sample:*",
    ),
    "builtin": (print, "builtins:print", "builtins:printf"),
    "builtin of the module": (print, "builtins:*", "builtin:*"),
}


def allowing(*entries: str) -> Settings:
    """Return settings with a list of allowed callables."""
    return Settings(allowed_callables=entries)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_listed_is_loaded_and_nothing_else(kind: str, protocol: int) -> None:
    """In every protocol, each kind of callable is loaded if an entry matches it, and refused if none does."""
    func, entry, other = KINDS[kind]
    written = _call(func)
    data = dumps(written, protocol)

    assert loads(data, allowing("x:y", entry)).label == written.label
    with pytest.raises(NotAllowedError, match="DEFERRED_ALLOWED_CALLABLES"):
        loads(data, allowing(other))


def _call(func: Callable[..., Any]) -> Call:
    return Call(func=func, args=(1, "two", [ann, print]), kwargs={"deep": {"er": sample.note}})


def test_an_alias_is_listed_by_its_own_name() -> None:
    """A payload that names an alias is loaded only if the alias is listed, not if only its target is."""
    data = dumps(call(sample.note), 0).replace(b"sample\nnote", b"sample\nold_name")

    assert loads(data, allowing("tests.support.sample:old_name")).func is sample.note
    assert loads(data, allowing("tests.support.sample:*")).func is sample.note
    with pytest.raises(NotAllowedError, match=r"tests\.support\.sample:old_name"):
        loads(data, allowing("tests.support.sample:note"))


def test_an_inherited_method_is_the_objects_classs() -> None:
    """An inherited method is listed under its object's class, not under the class that defines it."""

    class Special(sample.Mailer):
        pass

    Special.__module__, Special.__qualname__ = sample.__name__, "Special"
    sample.Special = Special  # type: ignore[attr-defined] # for this test only
    try:
        data = dumps(call(Special("bea").send, "bob"), 5)
        loads(data, allowing("tests.support.sample:Special.send")).run()
        with pytest.raises(NotAllowedError, match=r"tests\.support\.sample:Special\.send"):
            loads(data, allowing("tests.support.sample:Mailer.send"))
    finally:
        del sample.Special  # type: ignore[attr-defined] # the same
    assert sample.ran == [("bea", "bob")]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Create a module that is not imported yet, with its own and imported names."""
    (tmp_path / "shop_of_the_allow_list.py").write_text(
        "from os import getpid\nfrom tests.support.sample import note\nran = []\ndef sell(*args): ran.append(args)\n"
        "class Till:\n    def ring(self): pass\nclass Bell:\n    def __call__(self): pass\nbell = Bell()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "shop_of_the_allow_list"
    sys.modules.pop("shop_of_the_allow_list", None)


@pytest.mark.parametrize("name", ["getpid", "note", "Till", "Bell", "bell"])
def test_a_modules_own_functions_are_those_it_defines(shop: str, name: str) -> None:
    """``module:*`` allows only functions that the module defines, not imported names, classes or objects."""
    pickled = b"c" + shop.encode() + b"\n%s\n)}\x87."

    assert loads(pickled % b"sell", allowing(f"{shop}:*")).func.__name__ == "sell"
    with pytest.raises(NotAllowedError, match="is not in DEFERRED_ALLOWED_CALLABLES, so a task may not call it"):
        loads(pickled % name.encode(), allowing(f"{shop}:*"))


def test_a_callable_that_is_not_listed_is_not_imported(shop: str) -> None:
    """If a callable is not listed, neither its module nor those of the arguments are imported, and no code runs."""
    data = dumps(call(sample.pair, sample.BadLoader(ValueError())), 5).replace(
        b"\x14tests.support.sample", b"\x16shop_of_the_allow_list"
    )
    settings = allowing("tests.support.sample:note")

    with watch() as seen, pytest.raises(NotAllowedError):
        loads(data, settings)

    assert seen == []
    assert shop not in sys.modules


class _SplitName:
    """A class with its own ``__reduce__``, whose bound method is pickled."""

    def __reduce__(self) -> Any:
        return _make_split, ()

    def method(self) -> None:
        """Do nothing."""


def _make_split() -> _SplitName:
    return _SplitName()


def _tail(func: bytes) -> bytes:
    """Return a pickled call of the callable that ``func`` leaves on the stack."""
    return func + b")}\x87."


NOTE, PAIR, SYSTEM = b"ctests.support.sample\nnote\n", b"ctests.support.sample\npair\n", b"cos\nsystem\n"
GETATTR = b"cbuiltins\ngetattr\n"
MAILER = b"ctests.support.sample\nMailer\n)\x81"
LOADER = b"cdeferred_middleware.contrib.django.backend\nload_task\n"
# Only sample's note, its Mailer.send and its own functions are allowed, under whatever name.
HOSTILE: dict[str, bytes] = {
    "another function": _tail(SYSTEM),
    "in protocol 4": _tail(b"\x80\x04\x8c\x02os\x8c\x06system\x93"),
    "by long texts": _tail(b"\x80\x04X\x02\x00\x00\x00os\x8d\x06\0\0\0\0\0\0\0system\x93"),
    "beneath": _tail(SYSTEM + NOTE + b"0"),
    "doubled": _tail(SYSTEM + b"20"),
    "remembered": _tail(SYSTEM + b"q\x000" + NOTE + b"0h\x00"),
    "remembered anew": _tail(NOTE + b"q\x000" + SYSTEM + b"q\x000h\x00"),
    "remembered by count": _tail(NOTE + b"\x940" + SYSTEM + b"\x940h\x01"),
    "remembered far away": _tail(SYSTEM + b"r\xff\xff\x00\x000" + NOTE + b"0j\xff\xff\x00\x00"),
    "remembered in digits": _tail(SYSTEM + b"p7\n0" + NOTE + b"0g7\n"),
    "called": _tail(NOTE + b")R"),
    "called by getattr": _tail(GETATTR + b"cos\n__dict__\nX\x06\0\0\0system\x86R"),
    "imported": _tail(GETATTR + b"cimportlib\nimport_module\nX\x02\0\0\0os\x85RX\x06\0\0\0system\x86R"),
    "an attribute of a function": _tail(GETATTR + NOTE + b"X\x08\0\0\0__call__\x86R"),
    "a dotted attribute": _tail(GETATTR + b"ctests.support.sample\nMailer\nX\x0d\0\0\0send.__call__\x86R"),
    "a dotted name": _tail(b"\x80\x04\x8c\x14tests.support.sample\x8c\x14functools.os.listdir\x93"),
    "an attribute with more": _tail(GETATTR + MAILER + b"X\x04\0\0\0send\x86RNa"),
    "an attribute with pairs": _tail(GETATTR + MAILER + b"X\x04\0\0\0send\x86RNNs"),
    "an attribute by new": _tail(GETATTR + MAILER + b"X\x04\0\0\0send\x86\x81"),
    "a name for an attribute": _tail(GETATTR + MAILER + NOTE + b"\x86R"),
    "bytes for an attribute": _tail(GETATTR + MAILER + b"C\x04send\x86R"),
    "a bytearray for a module": _tail(b"\x80\x05\x96\x14\0\0\0\0\0\0\0tests.support.sample\x8c\x04note\x93"),
    "made with keywords": _tail(b"\x80\x04" + NOTE + b")}\x92"),
    "an attribute without a name": _tail(GETATTR + MAILER + b"\x85R"),
    "an attribute with a state": _tail(GETATTR + MAILER + b"X\x04\0\0\0send\x86R}b"),
    "three arguments": _tail(GETATTR + MAILER + b"X\x04\0\0\0sendN\x87R"),
    "arguments in a list": _tail(GETATTR + b"]" + MAILER + b"aX\x04\0\0\0sendaR"),
    "made by a function": _tail(GETATTR + NOTE + b")RX\x04\0\0\0send\x86R"),
    "an instance": _tail(b"(itests.support.sample\nnote\n"),
    "an object": _tail(b"(" + NOTE + b"o"),
    "a new object": _tail(NOTE + b")\x81"),
    "changed": _tail(NOTE + b"N}X\x08\0\0\0__code__Ns\x86b"),
    "changed through the memo": NOTE + b"q\x00)}\x87q\x01h\x00N}X\x08\0\0\0__name__X\x01\0\0\0xs\x86b0.",
    "a partial of another": _tail(b"cfunctools\npartial\n" + SYSTEM + b"\x85R(" + SYSTEM + b")}NtbN0"),
    "a partial that changes": _tail(b"cfunctools\npartial\n" + NOTE + b"\x85R(" + SYSTEM + b")}Ntb"),
    "a partial that changes twice": _tail(
        b"cfunctools\npartial\n" + NOTE + b"q\x00\x85R(" + SYSTEM + b")}Ntb(h\x00)}Ntb"
    ),
    "a partial without a state": _tail(b"cfunctools\npartial\n" + NOTE + b"\x85R"),
    "a partial with items": _tail(b"cfunctools\npartial\n" + NOTE + b"q\x00\x85R(h\x00)}NtbNa"),
    "a partial with a state of three": _tail(b"cfunctools\npartial\n" + NOTE + b"q\x00\x85R(h\x00)}tb"),
    "a partial by new of the same": _tail(b"cfunctools\npartial\n" + NOTE + b"q\x00\x85\x81(h\x00)}Ntb"),
    "a partial by new": _tail(b"cfunctools\npartial\n" + SYSTEM + b"\x85\x81(" + NOTE + b")}Ntb"),
    "a partial with more": _tail(b"cfunctools\npartial\n" + NOTE + b"N\x86R"),
    "a Django task of another module": _tail(LOADER + b"X\x09\0\0\0os.system\x85R"),
    "a Django task of another package": _tail(LOADER + b"X\x1a\0\0\0tests.support.samples.note\x85R"),
    "a Django task by a function of a later name": _tail(b"czz\nload\nX\x19\0\0\0tests.support.sample.note\x85R"),
    "a Django task by a function of an earlier name": _tail(b"caa\nload\nX\x19\0\0\0tests.support.sample.note\x85R"),
    "a Django task with a state": _tail(LOADER + b"X\x19\0\0\0tests.support.sample.note\x85R}b"),
    "a Django task by new": _tail(LOADER + b"X\x19\0\0\0tests.support.sample.note\x85\x81"),
    "a Django task without a name": _tail(LOADER + b")R"),
    "a Django task whose name is no text": _tail(LOADER + NOTE + b"\x85R"),
    "an extension": _tail(b"\x82\xf0"),
    "an extension with more digits": _tail(b"\x84\xf0\x00\x00\x00"),
    "a persistent ID": _tail(b"Ptests.support.sample:note\n"),
    "a persistent object": _tail(NOTE + b"Q"),
    "a text": _tail(b"X\x19\0\0\0tests.support.sample:note"),
    "a blank in the module": _tail(b"ctests.support.sample note\nx\n"),
    "a blank in the name": _tail(b"ctests.support.sample\nnote x\n"),
    "an escape in the name": _tail(b"ctests.support.sam\\x70le\nnote\n"),
    "an escape that is none": _tail(b"ctests.support.sam\\qple\nnote\n"),
    "a name of Python 2": _tail(b"ccommands\ngetoutput\n"),
    "a name of Python 2 by parts": _tail(b"\x8c\x08commands\x8c\x09getoutput\x93"),
    "a protocol in the middle": _tail(b"\x80\x04\x80\x02ccommands\ngetoutput\n"),
    "bytes for a name": _tail(b"\x80\x04C\x14tests.support.sampleC\x04note\x93"),
    "a list": b"]" + NOTE + b"a)a}a.",
    "four parts": b"(" + NOTE + b")}Nt.",
    "a tuple that is made": b"cbuiltins\ntuple\n(" + NOTE + b")}t\x85\x81.",
    "a tuple that grows": NOTE + b")\x86}a.",
    "another end": SYSTEM + b")}\x87.0" + _tail(NOTE),
    "two stacks": b"(" + SYSTEM + b"(" + NOTE + b"1" + b")}t.",
    "no end": NOTE + b")}\x87",
    "no start": b")}\x87.",
    "nothing": b"",
    "a frame too long": b"\x80\x04\x95\xff\0\0\0\0\0\0\0" + _tail(NOTE),
    "no opcode": _tail(NOTE + b"\xff"),
}


@pytest.mark.parametrize("trick", HOSTILE)
def test_a_trick_is_not_let_through(trick: str) -> None:
    """A pickle that imitates a listed callable, or that can't be analysed, is refused before it is loaded."""
    copyreg.add_extension(sample.__name__, "note", 0xF0)
    settings = allowing(
        "tests.support.sample:note",
        "tests.support.sample:Mailer.send",
        "tests.support.sample:*",
        "commands:getoutput",
        "builtins:tuple",
    )
    try:
        with watch() as seen, pytest.raises(TaskContentError):
            loads(HOSTILE[trick], settings)
    finally:
        copyreg.remove_extension(sample.__name__, "note", 0xF0)

    assert [what for what in seen if what[0] != "pickle.find_class"] == []
    # Nothing is looked up either, unless the unpickler itself refuses the pickle of tests.support.sample:note.
    assert seen == [] or trick in ("a frame too long", "a new object", "made with keywords")
    assert sample.ran == []


def test_an_object_that_equals_everything_stands_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that claims to be of a listed module is not one of its functions, whatever the module holds."""

    class Everything:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment] # as for any class with its own comparison

    def claims(*args: object) -> None:
        """Belongs to the tests."""

    claims.__module__ = sample.__name__
    monkeypatch.setattr(sample, "everything", Everything(), raising=False)

    with pytest.raises(NotAllowedError):
        check_callable(claims, ("tests.support.sample:*",))


def test_a_trick_of_the_object_is_seen_after_loading() -> None:
    """If an object's state replaces its own listed method, the call is refused after loading and before it runs."""
    data = _tail(GETATTR + MAILER + b"}X\x04\0\0\0send" + b"ctests.support.sample\npair\n" + b"sbX\x04\0\0\0send\x86R")

    check_payload(data, ("tests.support.sample:Mailer.send",), legacy=False)
    with pytest.raises(NotAllowedError, match=r"tests\.support\.sample:pair"):
        loads(data, allowing("tests.support.sample:Mailer.send"))
    assert sample.ran == []


def test_a_django_task_is_listed_by_its_function() -> None:
    """Before it is loaded, the payload of a Django task has the name of the task's function."""
    data = _tail(LOADER + b"X\x19\0\0\0tests.support.sample.note\x85R")

    check_payload(data, ("tests.support.sample:note",), legacy=False)
    check_payload(data, ("tests.support.sample:*",), legacy=False)


def test_an_object_that_makes_itself_is_explained() -> None:
    """A method of an object with a custom ``__reduce__`` can't be listed, and the error says what to do."""
    with pytest.raises(
        NotAllowedError, match=r"is not a name, a method, a partial or a plain object.*Defer a function or a method"
    ):
        loads(dumps(call(_SplitName().method), 5), allowing(f"{__name__}:_SplitName.method"))


def test_a_deep_nest_is_refused() -> None:
    """A pickle with very deep nesting is refused and doesn't exhaust the stack."""
    for depth in (25, 30_000):
        data = _tail(GETATTR * depth + MAILER + b"X\x04\0\0\0send\x86R" * depth)
        with pytest.raises(NotAllowedError):
            loads(data, allowing("tests.support.sample:Mailer.send"))


def test_a_pickle_of_very_many_opcodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle with too many opcodes is not loaded."""
    monkeypatch.setattr("deferred_middleware.calls.allowlist._MAX_OPCODES", 1000)

    assert loads(dumps(call(sample.note, list(range(400))), 5), allowing("tests.support.sample:*")).args
    with pytest.raises(NotAllowedError, match="more than 1,000 opcodes"):
        loads(dumps(call(sample.note, list(range(1400))), 5), allowing("tests.support.sample:*"))


class _Marker:
    """Stands for any object that a name refers to; calling it makes another marker."""

    def __init__(self, module: str, name: str) -> None:
        self.reference = f"{module}:{name}"

    def __call__(self, *args: object) -> _Marker:
        return _Marker("made", "by calling")


class _Marking(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a marker with the name to look up."""
        return _Marker(module, name)


_PIECES = [
    *(
        NOTE,
        PAIR,
        b"itests.support.sample\npair\n",
        b"\x8c\x14tests.support.sample",
        b"\x8c\x04note",
        b"\x8c\x04pair",
        b"\x93",
        b"N",
        b"(",
        b")",
    ),
    *(b"]", b"}", b"0", b"1", b"2", b"\x94", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"p1\n", b"g1\n", b"j\x02\0\0\0"),
    *(b"t", b"\x85", b"\x86", b"\x87", b"R", b"\x81", b"o", b"b", b"a", b"e", b"s", b"u", b"\x80\x02", b"\x80\x04"),
]
# Each piece stores a value in the memo or below a mark, and leaves the stack as it was.
_TURNS = [
    push + keep + pop
    for push in (NOTE, PAIR, b"h\x00", b"\x8c\x14tests.support.sample\x8c\x04pair\x93", b")", NOTE + b")R")
    for keep in (b"q\x00", b"q\x01", b"\x94", b"p2\n", b"2q\x000", b"(1")
    for pop in (b"0", b"(N10", b"20q\x010")
]
_ENDS = [
    push + b")}\x87."
    for push in (b"", NOTE, PAIR, b"h\x00", b"h\x01", b"j\x02\0\0\0", NOTE + PAIR + b"0", PAIR + NOTE + b"0")
]


@given(st.lists(st.sampled_from(_TURNS) | st.sampled_from(_PIECES), max_size=12), st.sampled_from(_ENDS))
@hypothesis_settings(max_examples=2000)
def test_the_walk_sees_what_the_unpickler_makes(pieces: list[bytes], end: bytes) -> None:
    """For any sequence of opcodes, if the check finds a listed callable, the unpickler produces the same callable."""
    data = b"".join(pieces) + end
    try:
        check_payload(data, ("tests.support.sample:note",), legacy=False)
    except NotAllowedError:
        return
    try:
        made = _Marking(io.BytesIO(data)).load()
    except Exception:  # noqa: BLE001 - if the unpickler refuses, no callable runs
        return
    assert made[0].reference == "tests.support.sample:note"


@given(st.binary(max_size=60), st.integers(0, 60))
def test_any_bytes_are_refused_or_seen_through(noise: bytes, at: int) -> None:
    """A damaged payload is either refused or calls a listed callable."""
    good = dumps(call(sample.note, 1, two="x"), 5)
    data = good[:at] + noise + good[at + len(noise) :]
    with contextlib.suppress(TaskContentError):
        assert loads(data, allowing("tests.support.sample:note")).func is sample.note


def deliver(settings: Settings, body: bytes, path: str = "/_cb/deferred/tests.support.sample/pair") -> int:
    """Return the status of a task's request."""
    return request(DeferredMiddleware(lambda *_: [], settings=settings), task_environ(body, path)).status


def test_a_task_that_is_not_allowed_waits_for_a_version_that_allows_it(caplog: pytest.LogCaptureFixture) -> None:
    """A disallowed task gets a 500 and an ERROR that names callable and setting; it runs once it is allowed."""
    caplog.set_level(logging.DEBUG)
    body = dumps(call(sample.pair, 1), 5)

    assert deliver(allowing("tests.support.sample:note"), body) == 500
    assert sample.ran == []
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert record.exc_info is not None
    assert "tests.support.sample:pair is not in DEFERRED_ALLOWED_CALLABLES, so a task may not call it" in str(
        record.exc_info[1]
    )
    assert deliver(allowing("tests.support.sample:note", "tests.support.sample:pair"), body) == 200
    assert sample.ran == [(1, None)]


def test_defer_refuses_at_once(queued: Queued) -> None:
    """A callable that is not listed can't be deferred in any way, and the error names it and says what to do."""
    process.install_settings(allowing("tests.support.sample:note", "tests.support.sample:Mailer.send"))

    defer(sample.note, print, [ann])
    defer(ann.send, "bob")
    func: Any
    for func in (sample.pair, ann.wrapped, sample.Mailer):
        with pytest.raises(
            CallError,
            match=r"^tests\.support\.sample:\S+ is not in DEFERRED_ALLOWED_CALLABLES, so a task may not call it",
        ) as caught:
            defer(func, 1)
        assert caught.value.label == str(call(func, 1).label)
    report = defer_many([call(sample.note), call(sample.pair, 1)], raise_errors=False)
    assert len(queued.tasks()) == 3
    assert [type(error) for _, error in report.errors] == [NotAllowedError]


def test_without_a_list_anything_may_be_called() -> None:
    """Without a list, any callable is allowed."""
    assert current_settings().allowed_callables == ()
    assert loads(dumps(call(print), 5)).func is print


class TestTheOlderLibrarysTasks:
    """Tasks of google.appengine.ext.deferred at DEFERRED_LEGACY_URLS."""

    URL = "/_ah/queue/deferred"

    def deliver(self, body: bytes, *entries: str, path: str = URL) -> int:
        """Return the status of a task's request."""
        return deliver(Settings(legacy_urls=(self.URL,), allowed_callables=entries), body, path)

    def test_a_function_and_a_method_are_listed_as_ours(self) -> None:
        """A bound method, which that library wraps in its own function, is listed as a method."""
        function, method = deferred.serialize(sample.pair, 1), deferred.serialize(ann.send, "bob")

        assert self.deliver(function, "tests.support.sample:*") == 200
        assert self.deliver(method, "tests.support.sample:Mailer.send") == 200
        assert sample.ran == [(1, None), ("ann", "bob")]
        for body in (function, method):
            assert self.deliver(body, "tests.support.sample:note", "tests.support.sample:Mailer") == 500
        assert len(sample.ran) == 2

    def test_what_the_datastore_keeps_is_looked_through(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A call behind a datastore key must be listed, too; at the library's own URLs such a key is not followed."""
        monkeypatch.setattr(
            "deferred_middleware.execution.legacy._stored", lambda key: dumps(call(sample.pair, key), 5)
        )
        monkeypatch.setattr("google.appengine.ext.db.delete", lambda key: None)
        body = pickle.dumps((deferred.deferred.run_from_datastore, ("key",), {}))

        assert self.deliver(body, "tests.support.sample:pair") == 200
        assert self.deliver(body, "tests.support.sample:note") == 500
        ours = f"/_cb/deferred/{deferred.deferred.__name__}/run_from_datastore"
        assert self.deliver(body, "tests.support.sample:pair", path=ours) == 500
        assert sample.ran == [("key", None)]

    def test_a_method_that_its_object_replaces_is_seen(self) -> None:
        """If an object's state replaces a listed method, the call is refused."""
        sneaky = sample.Mailer()
        vars(sneaky)["send"] = sample.pair
        body = pickle.dumps((deferred.deferred.invoke_member, (sneaky, "send", 1), {}))

        assert self.deliver(body, "tests.support.sample:Mailer.send") == 500
        assert sample.ran == []


FORGED_STATE = (
    b"}(X\x0a\0\0\0__module__X\x14\0\0\0tests.support.sample"
    b"X\x0c\0\0\0__qualname__X\x04\0\0\0noteX\x08\0\0\0__name__X\x04\0\0\0noteub"
)
FORGED = b"ctests.support.sample\nCaller\n)\x81" + FORGED_STATE


@pytest.mark.parametrize(
    "entry", ["tests.support.sample:note", "tests.support.sample:*", "google.appengine.ext.deferred.deferred:*"]
)
@pytest.mark.parametrize("legacy", [True, False])
def test_what_an_object_says_about_itself_does_not_count(entry: str, legacy: bool) -> None:
    """An object in a method's place that calls itself a listed function, or one of the older library's, is refused."""
    forged = (
        FORGED
        if "google" not in entry
        else FORGED.replace(
            b"\x14\0\0\0tests.support.sample", b"\x26\0\0\0google.appengine.ext.deferred.deferred"
        ).replace(b"\x04\0\0\0note", b"\x12\0\0\0run_from_datastore")
    )
    data = _tail(GETATTR + MAILER + b"}X\x04\0\0\0send" + forged + b"sbX\x04\0\0\0send\x86R")
    settings = allowing("tests.support.sample:Mailer.send", entry)

    check_payload(data, settings.allowed_callables, legacy=legacy)
    with pytest.raises(NotAllowedError):
        content_of(data, settings, legacy=legacy)


@pytest.mark.parametrize(
    ("func", "entry"),
    [
        (str.upper, "builtins:str.upper"),
        ([].append, "builtins:list.append"),
        (dict.fromkeys, "builtins:dict.fromkeys"),
        ([1].__len__, "builtins:list.__len__"),
        (functools.partial(functools.partial(print)), "builtins:print"),
    ],
)
def test_a_listed_callable_is_found_by_identity(func: Callable[..., Any], entry: str) -> None:
    """Methods of built-in classes are compared by what the class holds, too."""
    check_callable(func, (entry,))
    with pytest.raises(NotAllowedError):
        check_callable(func, ("builtins:len", "builtins:str.lower", "builtins:list.extend", "builtins:dict.get"))

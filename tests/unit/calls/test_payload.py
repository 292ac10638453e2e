"""Tests of payloads: encoding, decoding, and error messages."""

from __future__ import annotations

import pickle
import threading
import tracemalloc
import zlib
from typing import Any

import pytest
from google.appengine.ext import deferred
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware import NotImportableError, Settings, UnpicklableArgumentError, call
from deferred_middleware.calls.payload import dumps, loads
from deferred_middleware.errors import CallableNotFoundError, PayloadError
from tests.support import sample, zoo

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(
    args=st.lists(plain),
    kwargs=st.dictionaries(st.text().filter(lambda name: not name.startswith("_")), plain),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
)
def test_a_call_survives_the_payload(args: list[Any], kwargs: dict[str, Any], protocol: int) -> None:
    """In every protocol, the loaded call has the same callable and arguments."""
    loaded = loads(dumps(call(sample.note, *args, **kwargs), protocol))

    assert (loaded.func, loaded.args, loaded.kwargs) == (sample.note, tuple(args), kwargs)


def test_the_older_library_runs_what_we_write() -> None:
    """google.appengine.ext.deferred.run accepts the library's payloads, so that a roll-back loses no tasks."""
    deferred.run(dumps(call(sample.pair, 1, second=2), 5))
    deferred.run(dumps(call(sample.Mailer("ann").send, "bob"), 5))
    deferred.run(dumps(call(sample.Mailer("ann").secrets()[0], "bob"), 2))

    assert sample.ran == [(1, 2), ("ann", "bob"), ("secret", "ann", "bob")]


def test_we_run_what_the_older_library_wrote() -> None:
    """A payload of google.appengine.ext.deferred runs, also for a bound method."""
    loads(deferred.serialize(sample.pair, 1, second=2)).run()
    loads(deferred.serialize(sample.Mailer("ann").send, "bob")).run()

    assert sample.ran == [(1, 2), ("ann", "bob")]


@pytest.mark.parametrize("index", [0, 1, 2])
def test_private_methods_run(index: int) -> None:
    """Private methods, including static and class methods, are found under their mangled names."""
    loads(dumps(call(sample.Mailer("ann").secrets()[index], "bob"), 5)).run()

    assert sample.ran[0][0].startswith("secret")
    assert sample.ran[0][-1] == "bob"


def test_methods_behind_wrappers_run() -> None:
    """A wrapped method runs through its wrapper, even if the wrapper has another name."""
    loads(dumps(call(sample.Mailer("ann").wrapped, "bob"), 5)).run()
    loads(dumps(call(sample.Mailer("ann").renamed, "bob"), 5)).run()

    assert sample.ran == [("wrapped", "ann", "bob"), ("renamed", "ann", "bob")]


def test_a_methods_arguments_do_not_collide() -> None:
    """Arguments with the parameter names of the older library's invoke_member reach the method."""
    loads(dumps(call(sample.Mailer("ann").collides, obj="o", membername="m"), 5)).run()

    assert sample.ran == [("ann", "o", "m")]


def test_arguments_are_those_at_the_time() -> None:
    """A change to an argument after the call was encoded doesn't affect the task."""
    items = [1]
    data = dumps(call(sample.note, items), 5)
    items.append(2)

    assert loads(data).args == ([1],)


@pytest.mark.parametrize("func", [sample.anonymous, sample.nested(), sample.badly_decorated])
def test_an_unfindable_callable_is_named(func: Any) -> None:
    """If the callable can't be found, the error names the callable, not an argument."""
    with pytest.raises(NotImportableError, match="The task could not find it either"):
        dumps(call(func), 5)


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((1, threading.Lock()), {}, "args[1]"),
        ((), {"key": [threading.Lock()]}, "kwargs['key'][0]"),
    ],
)
def test_an_unpicklable_argument_is_named(args: tuple[Any, ...], kwargs: dict[str, Any], path: str) -> None:
    """The error names the callable and the argument's path, and is also a PicklingError."""
    with pytest.raises(UnpicklableArgumentError) as caught:
        dumps(call(sample.note, *args, **kwargs), 5)

    assert (caught.value.label, caught.value.path) == ("tests.support.sample/note", path)
    assert isinstance(caught.value, pickle.PicklingError)
    assert str(caught.value).startswith(f"tests.support.sample/note can't be deferred: {path}: lock can't be pickled")
    assert caught.value.__cause__ is not None


def test_a_callable_that_does_not_pickle_itself_is_told() -> None:
    """If no argument is the cause, the error says that the call can't be pickled, with pickle's reason."""
    with pytest.raises(
        UnpicklableArgumentError,
        match=r"tests\.support\.zoo/Slotted can't be deferred: the call can't be pickled .*__s",
    ):
        dumps(call(zoo.Slotted("")), 0)


def test_an_argument_of_the_main_script_is_refused() -> None:
    """An object whose class is in __main__ is refused, because it can't be loaded where the task runs."""
    import __main__

    __main__.Stray = type("Stray", (), {"__module__": "__main__"})
    try:
        with pytest.raises(UnpicklableArgumentError, match=r"args\[0\]\[1\]: Stray belongs to the script"):
            dumps(call(sample.note, [1, __main__.Stray()]), 5)
    finally:
        del __main__.Stray


def test_a_string_that_says_main_is_no_problem() -> None:
    """A string that contains __main__ is allowed."""
    assert loads(dumps(call(sample.note, "__main__"), 5)).args == ("__main__",)


def test_a_callable_that_is_gone_is_an_error_of_its_own() -> None:
    """A missing function or module has its own error type, because a newer version of the app may have it."""
    data = dumps(call(sample.note), 0)

    with pytest.raises(CallableNotFoundError, match="nope"):
        loads(data.replace(b"note", b"nope"))
    with pytest.raises(CallableNotFoundError, match="simple"):
        loads(data.replace(b"sample", b"simple"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"garbage", "can't be unpickled"),
        (dumps(call(sample.note, "x"), 5)[:-5], "can't be unpickled"),
        (pickle.dumps("text"), "a pickled str"),
        (pickle.dumps((1, (), {})), "a pickled tuple"),
        (pickle.dumps((print, ())), "a pickled tuple"),
        (pickle.dumps((print, 5, {})), "a pickled tuple"),
        (pickle.dumps((sample.note, (sample.BadLoader(KeyError("later")),), {})), "KeyError"),
        (pickle.dumps((sample.note, (sample.BadLoader(SystemExit(3)),), {})), "SystemExit"),
    ],
)
def test_an_unreadable_payload_is_an_error_of_its_own(data: bytes, words: str) -> None:
    """A truncated, empty or foreign payload, or one whose argument fails to load, raises the library's own error."""
    with pytest.raises(PayloadError, match=words):
        loads(data)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("garbage", [b".", b"\x00", b"N.", b"garbage"])
def test_what_follows_the_pickle_is_an_error(protocol: int, garbage: bytes) -> None:
    """A payload with bytes after the pickle is refused."""
    data = dumps(call(sample.note, 1, two=2), protocol)

    assert loads(data).args == (1,)
    for wrong in (data + garbage, data + data):
        with pytest.raises(PayloadError, match="ends after"):
            loads(wrong)


@pytest.mark.parametrize("protocol", range(6))
def test_a_large_payload_is_read_whole(protocol: int) -> None:
    """A payload with several frames, or with none, is read to its end."""
    value = [b"x" * 70_000, "y" * 70_000, list(range(30_000))]
    data = dumps(call(sample.note, value), protocol)

    assert loads(data).args == (value,)
    with pytest.raises(PayloadError, match=f"ends after {len(data):,} of {len(data) + 1:,} bytes"):
        loads(data + b".")


def test_the_given_settings_bound_decompression() -> None:
    """Decompression stops at the limit in the handler's settings, or else the process's."""
    bomb = zlib.compress(dumps(call(sample.note, b"\0" * 20_000_000), 5), 9)
    assert len(bomb) < 20_100

    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="more than 1,000,000 bytes"):
            loads(bomb, Settings(max_payload_bytes=1_000_000))
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert loads(bomb, Settings(max_payload_bytes=20_100_000)).func is sample.note


def test_what_follows_compressed_data_is_an_error() -> None:
    """Bytes after the compressed stream or its pickle are refused, and so is a truncated stream."""
    data = dumps(call(sample.note), 5)
    packed = zlib.compress(data)

    assert loads(packed).func is sample.note
    for wrong in (packed + b".", packed[:-1], packed[:-5], zlib.compress(data + b"."), zlib.compress(packed)):
        with pytest.raises(PayloadError):
            loads(wrong)


@pytest.mark.parametrize("name", ["PosixPath", "PurePosixPath", "PureWindowsPath"])
@pytest.mark.parametrize("allowed", [(), ("tests.support.sample:note",)])
def test_the_paths_of_python_3_13_are_read(name: str, allowed: tuple[str, ...]) -> None:
    """A path that Python 3.13 has pickled, in any protocol, is read by each other version."""
    import pathlib

    in_text = f"(ctests.support.sample\nnote\n(cpathlib._local\n{name}\n(V/data\ntRt(dt.".encode()
    by_stack = (
        b"\x80\x04(\x8c\x14tests.support.sample\x8c\x04note\x93(\x8c\x0epathlib._local\x8c"
        + bytes([len(name)])
        + name.encode()
        + b"\x93(X\x05\x00\x00\x00/datatRt}t."
    )
    for data in (in_text, by_stack):
        loaded = loads(data, Settings(allowed_callables=allowed))
        assert loaded.args == (getattr(pathlib, name)("/data"),)
        assert type(loaded.args[0]) is getattr(pathlib, name)


def test_the_name_of_the_module_is_only_a_text_elsewhere() -> None:
    """A text that is the name of the module stays as it is."""
    assert loads(dumps(call(sample.note, "pathlib._local"), 5)).args == ("pathlib._local",)

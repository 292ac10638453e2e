"""Compare what the walk reads in a pickle with what CPython's two unpicklers load, with frames and without."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from deferred_middleware.calls.payload import as_stream, content_of
from deferred_middleware.config.settings import Settings
from deferred_middleware.errors import NotAllowedError
from deferred_middleware.wire.pickle_tree import Group, Made, Name, Node, Value, sketch
from tests.support import sample

STREAMS = 5_000_000 if os.environ.get("DEFERRED_SOAK") else 5_000
"""How many pickles are compared."""

NOTE = b"\x8c\x14tests.support.sample\x8c\x04note\x93"
PAIR = b"\x8c\x14tests.support.sample\x8c\x04pair\x93"


class _Marker:
    """Stands for an object that a name means, or that was made from one."""

    def __init__(self, reference: str) -> None:
        self.reference = reference

    def __call__(self, *_arguments: object) -> _Marker:
        return _Marker("made")


class _Marking:
    """An unpickler that loads no name: it returns a marker, and remembers the name."""

    names: list[str]

    def find_class(self, module: str, name: str) -> Any:
        """Return a marker, and remember the name."""
        self.names.append(f"{module}.{name}")
        return _Marker(self.names[-1])


class _CUnpickler(_Marking, pickle.Unpickler):
    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.names = []


class _PythonUnpickler(_Marking, pickle._Unpickler):
    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self.names = []


Unpickler = type[_CUnpickler] | type[_PythonUnpickler]
LOADERS: dict[str, tuple[Unpickler, Callable[[bytes], Any]]] = {
    "C, from our stream": (_CUnpickler, as_stream),
    "Python, from our stream": (_PythonUnpickler, as_stream),
    "Python": (_PythonUnpickler, io.BytesIO),
}


def _drawn(node: Node | None) -> object:
    """Return a plain form of a node that can be compared with :func:`_loaded`."""
    if isinstance(node, Value):
        return repr(node.value)
    if isinstance(node, Name):
        return ("marker", str(node))
    if isinstance(node, Made):
        return ("marker", "made")
    if isinstance(node, Group):
        return (node.kind, [_drawn(item) for item in node.items]) if node.kind == "tuple" else node.kind
    return None


def _loaded(value: object) -> object:
    if isinstance(value, _Marker):
        return ("marker", value.reference)
    if isinstance(value, tuple):
        return ("tuple", [_loaded(item) for item in value])
    if isinstance(value, (list, dict, set, frozenset)):
        return type(value).__name__
    return repr(value)


def _disagreement(data: bytes) -> str | None:
    """Return how an unpickler disagrees with the walk about ``data``; None if none does."""
    read = sketch(data)
    if read.node is None:
        return None
    expected = _drawn(read.node), [str(name) for name in read.names], len(data) - read.trailing_bytes
    for loader, (unpickler, opened) in LOADERS.items():
        stream = opened(data)
        loading = unpickler(stream)
        try:
            value = loading.load()
        except Exception:  # noqa: BLE001 - a pickle that the unpickler refuses runs nothing
            continue
        # In Python, a frame is read to its end although the pickle may end before.
        end = stream.tell() if unpickler is _CUnpickler else expected[2]
        found = _loaded(value), loading.names, end
        if found != expected:
            return f"{loader}: {data!r}: {found} instead of {expected}"
    return None


_PIECES = (
    *(NOTE, PAIR, b"ctests.support.sample\nnote\n", b"(itests.support.sample\npair\n", b"N", b"(", b")", b"]", b"}"),
    *(
        b"0",
        b"1",
        b"2",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"R",
        b"a",
        b"e",
        b"s",
        b"u",
        b"\x94",
        b"\x8f",
        b"\x90",
        b"\x91",
    ),
    *(
        b"q\x00",
        b"q\x01",
        b"h\x00",
        b"h\x01",
        b"p2\n",
        b"g2\n",
        b"r\x01\0\0\0",
        b"j\x01\0\0\0",
        b"\x80\x04",
        b"\x80\x05",
    ),
    *(b"I1\n", b"L1L\n", b"F1.5\n", b"S'x'\n", b"Va\n", b"U\x01a", b"T\x02\0\0\0ab", b"C\x03.N.", b"B\x02\0\0\0N."),
    *(b"\x8e\x02\0\0\0\0\0\0\0N.", b"\x96\x02\0\0\0\0\0\0\0N.", b"X\x04\0\0\0note", b"\x8d\x04\0\0\0\0\0\0\0pair"),
    *(
        b"K\x07",
        b"M\x01\x02",
        b"J\1\2\3\4",
        b"\x8a\x02\1\2",
        b"\x8b\x02\0\0\0\1\2",
        b"G\0\0\0\0\0\0\0\0",
        b"\x88",
        b"\x89",
    ),
    *(NOTE + b")}\x87.", PAIR + b")}\x87.", b".", b"\x8c\x14tests.support.sample", b"\x8c\x04note", b"\x93"),
)
# The argument of one opcode holds other opcodes, which are found if a reader leaves the argument too early.
_HIDING = (
    b"\x8c" + bytes([len(PAIR) + 4]) + PAIR + b")}\x87.",
    b"C" + bytes([len(PAIR) + 4]) + PAIR + b")}\x87.",
    b"B" + struct.pack("<I", len(PAIR) + 4) + PAIR + b")}\x87.",
    b"\x8e" + struct.pack("<Q", len(PAIR) + 4) + PAIR + b")}\x87.",
    b"V" + b"ctests.support.samplex)}\x87.\n",
)
_ENDS = (NOTE + b")}\x87.", PAIR + b")}\x87.", b")}\x87.", b".", b"h\x00)}\x87.", b"h\x01.")


def _stream(chance: random.Random) -> bytes:
    """Return opcodes in any order, half of the time with frames whose ends fall anywhere."""
    pieces = [chance.choice(_HIDING if chance.random() < 0.15 else _PIECES) for _ in range(chance.randrange(9))]
    pieces.append(chance.choice(_ENDS))
    if chance.random() < 0.5:
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(pieces))
            rest = b"".join(pieces[at:])
            end = chance.choice((len(rest), len(b"".join(pieces[at : at + 2])), chance.randrange(len(rest) + 12)))
            pieces.insert(at, b"\x95" + struct.pack("<Q", end))
    data = b"".join(pieces)
    if chance.random() < 0.1:
        at = chance.randrange(len(data))
        data = data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    return (b"\x80\x04" if chance.random() < 0.7 else b"") + data


def test_the_walk_and_both_unpicklers_agree() -> None:
    """What an unpickler loads is what the walk has read: the same object, the same names, the same end."""
    chance = random.Random(0)
    read = 0
    for _ in range(STREAMS):
        data = _stream(chance)
        disagreement = _disagreement(data)
        assert disagreement is None, disagreement
        read += sketch(data).node is not None if read < 500 else 0
    assert read >= 500, "too few of the pickles were whole"


def _crossing(opcode: bytes, size: struct.Struct, frame_bytes: int) -> bytes:
    """Return a pickle whose frame ends inside the argument of ``opcode``.

    After the opcode, the pickle makes a call of ``note``. The argument holds a call of ``pair``, which an unpickler
    finds if it goes on reading behind the frame.
    """
    hidden = b"0(ctests.support.sample\npair\n)}t."
    argument = b"x" * frame_bytes + hidden
    inside = opcode + size.pack(len(argument)) + argument
    frame = b"\x95" + struct.pack("<Q", 1 + size.size + frame_bytes)
    return b"\x80\x04" + frame + inside + b"0" + NOTE + b")}\x87."


SIZES = {
    b"\x8e": struct.Struct("<Q"),
    b"B": struct.Struct("<I"),
    b"X": struct.Struct("<I"),
    b"\x8d": struct.Struct("<Q"),
}


@pytest.mark.parametrize("frame_bytes", [1, 40, 70_000, 140_000])
@pytest.mark.parametrize("opcode", SIZES)
def test_a_frame_that_ends_inside_an_argument_is_refused(opcode: bytes, frame_bytes: int) -> None:
    """The list refuses it before anything is loaded. Without a list, what is loaded is what the bytes say in order."""
    data = _crossing(opcode, SIZES[opcode], frame_bytes)

    assert sketch(data).problem == "an opcode crosses the end of a frame"
    with pytest.raises(NotAllowedError, match="an opcode crosses the end of a frame"):
        content_of(data, Settings(allowed_callables=("tests.support.sample:note",)), legacy=False)
    assert content_of(data, Settings(), legacy=False)[0] is sample.note


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("size", [1, 1000, 65_535, 65_536, 65_537, 140_000, 300_000])
def test_what_pickle_writes_is_read_and_loaded(protocol: int, size: int) -> None:
    """Frames of pickle's own, and large objects between them, are accepted in each protocol."""
    value = (["x" * size, b"y" * size] * 2, list(range(300)))
    for dumps in (pickle.dumps, pickle._dumps):  # type: ignore[attr-defined] # typeshed lacks it
        data = dumps(value, protocol)
        read = sketch(data, max_opcodes=1_000_000)
        assert (read.problem, read.trailing_bytes) == (None, 0)
        source = as_stream(data)
        assert (pickle.Unpickler(source).load(), source.tell()) == (value, len(data))

"""Tests of the walk over a pickle: what it says of each opcode is what the unpickler would do."""

from __future__ import annotations

import _compat_pickle
import io
import pickle
import pickletools
from typing import Any

import pytest

from deferred_middleware.wire import pickle_tree
from deferred_middleware.wire.pickle_tree import Group, Made, Name, Node, Unknown, Value, sketch


def shape(node: Node | None) -> Any:
    """Return a node in a form to compare."""
    if isinstance(node, Value):
        return node.value
    if isinstance(node, Name):
        return node
    if isinstance(node, Group):
        return node.kind, [shape(item) for item in node.items]
    if isinstance(node, Made):
        made = {
            "arguments": shape(node.arguments),
            "keywords": shape(node.keywords),
            "by_new": node.by_new,
            "items": [shape(item) for item in node.items],
            "in_pairs": node.in_pairs,
            "state": shape(node.state),
        }
        return str(node.maker), {name: value for name, value in made.items() if value not in (None, False, [])}
    return node.what if isinstance(node, Unknown) else None


class _Looked(pickle._Unpickler):
    """The unpickler in Python. It tells the names that it looks up, after those of Python 2 were changed."""

    proto: int
    fix_imports: bool

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.found: list[str] = []

    def find_class(self, module: str, name: str) -> Any:
        """Note the name that would be looked up, with the lines of the standard library's pickle.py."""
        if self.proto < 3 and self.fix_imports:
            if (module, name) in _compat_pickle.NAME_MAPPING:
                module, name = _compat_pickle.NAME_MAPPING[module, name]
            elif module in _compat_pickle.IMPORT_MAPPING:
                module = _compat_pickle.IMPORT_MAPPING[module]
        self.found.append(f"{module}.{name}")
        return dict


PYTHON_2 = {
    "a function that moved": ("commands", "getoutput", "subprocess.getoutput"),
    "a module with another name": ("Queue", "Queue", "queue.Queue"),
    "a builtin with another name": ("__builtin__", "xrange", "builtins.range"),
}


@pytest.mark.parametrize("protocol", [None, 0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("what", PYTHON_2)
@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL", "INST"])
def test_a_name_of_python_2_is_changed_before_protocol_3(what: str, opcode: str, protocol: int | None) -> None:
    """The walk says the name that the unpickler looks up: before protocol 3 the new name, from then on the old one."""
    module, name, new = PYTHON_2[what]
    head = b"" if protocol is None else bytes([0x80, protocol])
    both = f"{module}\n{name}\n".encode()
    data = {
        "GLOBAL": head + b"c" + both + b".",
        "INST": head + b"(i" + both + b".",
        "STACK_GLOBAL": head + b"".join(bytes([0x8C, len(part)]) + part.encode() for part in (module, name)) + b"\x93.",
    }[opcode]

    unpickler = _Looked(data)
    unpickler.load()
    assert [str(one) for one in sketch(data).names] == unpickler.found
    assert unpickler.found == [f"{module}.{name}" if protocol is not None and protocol >= 3 else new]


def test_an_object_made_with_keywords_is_told() -> None:
    """NEWOBJ_EX calls ``__new__`` with keyword arguments."""
    data = b"\x80\x04cm\nC\nK\x01\x85}\x8c\x01kK\x02s\x92."

    assert [opcode.name for opcode, _, _ in pickletools.genops(data)][-2] == "NEWOBJ_EX"
    assert shape(sketch(data).node) == (
        "m.C",
        {"arguments": ("tuple", [1]), "keywords": ("dict", ["k", 2]), "by_new": True},
    )


BYTEARRAY = b"\x96\x01\0\0\0\0\0\0\0m"


@pytest.mark.parametrize(
    "data",
    [
        BYTEARRAY + b"\x8c\x01n\x93.",
        b"\x8c\x01m" + BYTEARRAY + b"\x93.",
        b"C\x01m\x8c\x01n\x93.",
        b"\x8c\x01mK\x01\x93.",
        b"\x8c\x01mN\x93.",
        b"\x8c\x01m)\x93.",
        b"cm\nn\n\x8c\x01n\x93.",
    ],
    ids=["bytearray as module", "bytearray as name", "bytes", "number", "None", "tuple", "name as module"],
)
def test_a_name_is_made_of_texts(data: bytes) -> None:
    """The parts of a name on the stack are texts. The unpickler refuses anything else, or would ask it for its text."""
    found = sketch(b"\x80\x05" + data)

    assert found.node is None
    assert found.problem == "the name of an attribute or of its module is not a text"
    assert Name not in map(type, found.names[1:])


class Grown(list[int]):
    """A list with attributes and items."""


class Filled(dict[str, int]):
    """A dictionary with attributes and items."""


def test_what_an_object_gets_after_it_was_made_is_told() -> None:
    """Items that are appended, pairs that are set, and the state, in any protocol that makes them."""
    grown, filled = Grown([1, 2]), Filled(one=1, two=2)
    grown.name = filled.name = "x"  # type: ignore[attr-defined]
    module = Grown.__module__
    for protocol in (2, 3, 4, 5):
        assert shape(sketch(pickle.dumps([grown, filled], protocol)).node) == (
            "list",
            [
                (
                    f"{module}.Grown",
                    {"arguments": ("tuple", []), "by_new": True, "items": [1, 2], "state": ("dict", ["name", "x"])},
                ),
                (
                    f"{module}.Filled",
                    {
                        "arguments": ("tuple", []),
                        "by_new": True,
                        "items": ["one", 1, "two", 2],
                        "in_pairs": True,
                        "state": ("dict", ["name", "x"]),
                    },
                ),
            ],
        )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"(K\x01K\x02t.", ("tuple", [1, 2])),
        (b"(K\x01K\x02l.", ("list", [1, 2])),
        (b"(K\x01K\x02d.", ("dict", [1, 2])),
        (b"K\x01\x85.", ("tuple", [1])),
        (b"K\x01K\x02\x86.", ("tuple", [1, 2])),
        (b"K\x01K\x02K\x03\x87.", ("tuple", [1, 2, 3])),
        (b"]K\x01a.", ("list", [1])),
        (b"](K\x01K\x02e.", ("list", [1, 2])),
        (b"}K\x01K\x02s.", ("dict", [1, 2])),
        (b"}(K\x01K\x02K\x03K\x04u.", ("dict", [1, 2, 3, 4])),
        (b"\x8f(K\x01\x90.", ("set", [1])),
        (b"(K\x01\x91.", ("frozenset", [1])),
        (b"K\x01K\x020.", 1),
        (b"K\x01(K\x02K\x031.", 1),
        (b"K\x01(0.", 1),
        (b"K\x012\x86.", ("tuple", [1, 1])),
        (b"\x88\x89N\x87.", ("tuple", [True, False, None])),
        (b"K\x01\x94K\x02\x94h\x01h\x00j\x01\0\0\0\x87.", ("tuple", [2, 1, 2])),
        (b"K\x01q\x000K\x02r\x01\0\0\x000h\x00g1\n\x86.", ("tuple", [1, 2])),
        (b"(cm\nC\nK\x01o.", ("m.C", {"arguments": ("tuple", [1])})),
        (b"(K\x01im\nC\n.", ("m.C", {"arguments": ("tuple", [1])})),
        (b"cm\nC\nK\x01\x85R.", ("m.C", {"arguments": ("tuple", [1])})),
        (b"\x97\x98.", "a buffer outside of the pickle"),
        (b"Pid\n.", "persistent ID 'id'"),
        (b"K\x01Q.", "a persistent ID"),
        (b"\x82\x07.", "extension 7 of copyreg"),
        (b"\x83\x07\x01.", "extension 263 of copyreg"),
        (b"\x84\x07\0\0\0.", "extension 7 of copyreg"),
        (b"\x82\x07K\x01a.", "extension 7 of copyreg"),
    ],
)
def test_an_opcode_does_what_the_unpickler_does(data: bytes, expected: Any) -> None:
    """Each opcode leaves on the stack what the unpickler would leave there."""
    found = sketch(data + b"rest")

    assert (found.problem, shape(found.node), found.trailing_bytes) == (None, expected, 4)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"0.", "an opcode takes an object from the empty stack"),
        (b"(\x85.", "an opcode takes an object from the empty stack"),
        (b".", "an opcode takes an object from the empty stack"),
        (b"2.", "an opcode reads from the empty stack"),
        (b"(2.", "an opcode reads from the empty stack"),
        (b"t.", "an opcode needs a mark, but there is none"),
        (b"K\x011.", "an opcode needs a mark, but there is none"),
        (b"(K\x01d.", "a dictionary has a key without a value"),
        (b"}(K\x01u.", "a dictionary has a key without a value"),
        (b")K\x01a.", "an opcode adds items to an object that is not a container"),
        (b"K\x01K\x02a.", "an opcode adds items to an object that is not a container"),
        (b"(K\x01\x91K\x02a.", "an opcode adds items to an object that is not a container"),
        (b"(o.", "an opcode makes an object without a class"),
        (b"h\x00.", "an opcode reads an entry of the memo that does not exist"),
        (b"K\x01", "it is damaged (pickle exhausted before seeing STOP)"),
    ],
)
def test_what_the_unpickler_can_not_do_is_a_problem(data: bytes, problem: str) -> None:
    """A malformed pickle has no object, and the problem is told."""
    found = sketch(data)

    assert (found.node, found.problem) == (None, problem)
    with pytest.raises(Exception, match=r".*"):
        _Looked(data).load()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"K\x01q\x02.", "writes an entry of the memo that is out of bounds"),
        (b"cm\nC\n}b.", "sets the state of an object that the pickle did not make, or that has a state already"),
        (b"cm\nC\n)R}b}b.", "sets the state of an object that the pickle did not make, or that has a state already"),
    ],
)
def test_the_walk_refuses_more_than_the_unpickler(data: bytes, problem: str) -> None:
    """What pickle never writes is refused, because the walk could not tell what it makes."""
    found = sketch(data)

    assert (found.node, found.problem) == (None, f"an opcode {problem}")


def test_the_limit_of_opcodes_is_exact() -> None:
    """A pickle with so many opcodes before its end is read; one of one opcode more is not."""
    data = b"N" + b"0N" * 2 + b"."

    assert sketch(data, max_opcodes=5).problem is None
    assert sketch(data, max_opcodes=4).problem == "it has more than 4 opcodes"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dumps", [pickle.dumps, vars(pickle)["_dumps"]], ids=["C", "Python"])
@pytest.mark.parametrize(
    "value",
    [
        b"x" * 70_000,
        (b"x" * 70_000, 1),
        [1, b"x" * 70_000, b"y" * 70_000],
        {"a": b"x" * 70_000, "b": ["y" * 70_000, 2]},
    ],
    ids=["alone", "and more", "between", "in a dictionary"],
)
def test_what_pickle_writes_outside_of_frames_is_read(dumps: Any, value: object, protocol: int) -> None:
    """A large argument, and what follows it, are outside of frames, and the next frame begins anywhere after them."""
    assert sketch(dumps(value, protocol)).problem is None


FRAME_OF_4 = b"\x80\x04\x95\x04\0\0\0\0\0\0\0"
FRAME_OF_13 = b"\x80\x04\x95\x0d\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (FRAME_OF_4 + b"C\x02xy.", None),
        (FRAME_OF_4 + b"C\x02xyN0.", None),
        (FRAME_OF_4 + b"C\x03xyz.", "an opcode crosses the end of a frame"),
        (FRAME_OF_4 + b"C\x03xyzN0.", "an opcode crosses the end of a frame"),
        (FRAME_OF_4 + b"NNN.", None),
        (FRAME_OF_4 + b"NN.", "a frame ends after the end of the pickle"),
        (FRAME_OF_4 + b"NN" + FRAME_OF_4[2:] + b"NNN.", "a frame starts inside a frame"),
        (FRAME_OF_4 + b"NN00" + FRAME_OF_4[2:] + b"N0N.", None),
        (FRAME_OF_4 + b"NN00" + FRAME_OF_4[2:] + b"N0.", "a frame ends after the end of the pickle"),
        (FRAME_OF_13 + b"NN00" + FRAME_OF_4[2:] + b"N0N.", None),
        (FRAME_OF_13 + b"NN0" + FRAME_OF_4[2:] + b"0NN.", "a frame starts inside a frame"),
    ],
)
def test_the_borders_of_frames_are_exact(data: bytes, problem: str | None) -> None:
    """An opcode may end where its frame ends, and not one byte later."""
    assert sketch(data).problem == problem


def test_a_name_may_have_so_many_characters() -> None:
    """The longest name is read."""
    name = "x" * pickle_tree.MAX_NAME_CHARACTERS

    assert sketch(f"c{name}\n{name}\n.".encode()).node is not None

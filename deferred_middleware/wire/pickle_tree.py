"""Read a pickle without loading it: follow its opcodes, and describe the objects that they would make.

    sketch(pickle.dumps((send_welcome, (42,), {})))     # a Sketch of a tuple: a Name, a Group with a Value, a Group

Nothing is imported, and nothing in the pickle is run: each object is a node that only says how it would be made. For
any bytes, damaged or hostile ones included, the result is a :class:`Sketch` after a bounded number of opcodes.

The standard library's ``pickletools`` defines what each opcode does. It reads the names after GLOBAL and INST in
another way than the unpickler; this module reads them as the unpickler does.
"""

from __future__ import annotations

import _compat_pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_OPCODES = 100_000
"""The default limit of opcodes to read."""
MAX_NAME_CHARACTERS = 1_000
"""The longest name of an attribute, and of a module."""
_FRAME_OPCODE_BYTES = 9


@dataclass(eq=False, slots=True)
class Value:
    """An object that the pickle contains: a number, a text, bytes, None, True or False."""

    value: object


@dataclass(eq=False, slots=True)
class Name:
    """An attribute of a module, which loading would import, with its name in Python 3."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


Kind = Literal["tuple", "list", "dict", "set", "frozenset"]


@dataclass(eq=False, slots=True)
class Group:
    """A container. The ``items`` of a dictionary are its keys and values in turn."""

    kind: Kind
    items: list[Node] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Made:
    """The object that ``maker`` would return for ``arguments``; ``items`` are then added, and ``state`` is set.

    If ``in_pairs`` is true, the items are keys and values in turn. If ``by_new`` is true, ``maker.__new__`` is called
    instead of ``maker``.
    """

    maker: Node
    arguments: Node
    keywords: Node | None = None
    by_new: bool = False
    items: list[Node] = field(default_factory=list)
    in_pairs: bool = False
    state: Node | None = None


@dataclass(eq=False, slots=True)
class Unknown:
    """An object that only the loading process could know. ``what`` describes it."""

    what: str


Node = Value | Name | Group | Made | Unknown

DJANGO_TASK_LOADER = "deferred_middleware.contrib.django.backend.load_task"
"""The function that makes the callable for a task of Django's."""


def django_task_name(node: Node) -> Name | None:
    """Return the name of the function that a task of Django's runs; None if ``node`` is anything else."""
    if not (isinstance(node, Made) and isinstance(node.maker, Name) and str(node.maker) == DJANGO_TASK_LOADER):
        return None
    path = node.arguments.items[0] if isinstance(node.arguments, Group) and node.arguments.items else None
    if node.by_new or node.items or node.state or not (isinstance(path, Value) and isinstance(path.value, str)):
        return None
    module, _, function = path.value.rpartition(".")
    return Name(module, function)


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """The object that a pickle would make, as a node.

    If the pickle can't be read to its end, ``problem`` says why, and ``parts`` has the nodes read until then, outermost
    first. ``trailing_bytes`` is the number of bytes that follow the pickle. ``names`` are all names in the pickle, in
    order.
    """

    node: Node | None
    problem: str | None = None
    parts: tuple[Node, ...] = ()
    trailing_bytes: int = 0
    names: tuple[Name, ...] = ()


class _MalformedError(Exception):
    pass


class _Machine:
    """The stack and the memo of the unpickler, with nodes in place of objects, and methods for the opcodes."""

    def __init__(self) -> None:
        self.stack: list[Node | None] = []
        """The nodes; None is a mark."""
        self.memo: dict[int, Node] = {}
        self.names: list[Name] = []
        """The names that have been read, in order."""
        self.protocol = 0
        self.opcodes = 0
        """The number of opcodes before the current one."""
        self.frame_end = 0
        """The position at which the current frame ends, or at which the last one has ended."""
        self.previous_position = 0
        """The position of the previous opcode."""

    def pop(self) -> Node:
        node = self.stack[-1] if self.stack else None
        if node is None:
            raise _MalformedError("an opcode takes an object from the empty stack")
        del self.stack[-1]
        return node

    def top(self) -> Node:
        node = self.stack[-1] if self.stack else None
        if node is None:
            raise _MalformedError("an opcode reads from the empty stack")
        return node

    def pop_to_mark(self) -> list[Node]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is None:
                found = [node for node in self.stack[index + 1 :] if node is not None]
                del self.stack[index:]
                return found
        raise _MalformedError("an opcode needs a mark, but there is none")

    def literal(self, argument: object) -> None:
        self.stack.append(Value(argument))

    def group(self, kind: Kind, items: list[Node]) -> None:
        self.stack.append(Group(kind, items))

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.group("tuple", items[::-1])

    def put_in(self, items: list[Node], *, in_pairs: bool = False) -> None:
        container = self.top()
        if isinstance(container, Made):
            container.in_pairs = in_pairs
        if isinstance(container, Made) or (isinstance(container, Group) and container.kind in ("list", "dict", "set")):
            container.items.extend(items)
        elif not isinstance(container, Unknown):
            raise _MalformedError("an opcode adds items to an object that is not a container")

    def pairs_from_mark(self) -> list[Node]:
        items = self.pop_to_mark()
        if len(items) % 2:
            raise _MalformedError("a dictionary has a key without a value")
        return items

    def remember(self, index: Any) -> None:
        # Pickle numbers the entries, so there are fewer than opcodes. The unpickler allocates memory up to the index.
        if not 0 <= int(index) <= self.opcodes:
            raise _MalformedError("an opcode writes an entry of the memo that is out of bounds")
        self.memo[int(index)] = self.top()

    def recall(self, index: Any) -> None:
        try:
            self.stack.append(self.memo[int(index)])
        except KeyError:
            raise _MalformedError("an opcode reads an entry of the memo that does not exist") from None

    def make(self, *, by_new: bool = False, with_keywords: bool = False) -> None:
        keywords = self.pop() if with_keywords else None
        arguments = self.pop()
        self.stack.append(Made(self.pop(), arguments, keywords, by_new))

    def make_from_mark(self, name: Name | None) -> None:
        items = self.pop_to_mark()
        if name is None:
            if not items:
                raise _MalformedError("an opcode makes an object without a class")
            self.stack.append(Made(items[0], Group("tuple", items[1:])))
        else:
            self.stack.append(Made(name, Group("tuple", items)))

    def build(self) -> None:
        state = self.pop()
        made = self.top()
        if isinstance(made, Name) or (isinstance(made, Made) and made.state is not None):
            raise _MalformedError(
                "an opcode sets the state of an object that the pickle did not make, or that has a state already"
            )
        if isinstance(made, Made):
            made.state = state

    def persistent(self) -> None:
        self.pop()
        self.stack.append(Unknown("a persistent ID"))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, Value) and isinstance(module, Value)):
            raise _MalformedError("the name of an attribute or of its module is not a text")
        if not (isinstance(name.value, str) and isinstance(module.value, str)):
            raise _MalformedError("the name of an attribute or of its module is not a text")
        self.stack.append(self.name(module.value, name.value))

    def name(self, module: str, qualname: str) -> Name:
        """Return the name that the unpickler looks up. Before protocol 3, the name in the pickle is one of Python 2."""
        if max(len(module), len(qualname)) > MAX_NAME_CHARACTERS:
            raise _MalformedError(f"a name has more than {MAX_NAME_CHARACTERS:,} characters")
        if self.protocol < 3:
            if (module, qualname) in _compat_pickle.NAME_MAPPING:
                module, qualname = _compat_pickle.NAME_MAPPING[module, qualname]
            else:
                module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        self.names.append(Name(module, qualname))
        return self.names[-1]

    def name_at(self, data: bytes, position: int) -> Name:
        """Return the name after the opcode at ``position``: the module and the attribute, each on its line.

        pickletools replaces escapes in them, which the unpickler does not do, and joins them by a blank, which may also
        occur in a name.
        """
        middle = data.index(b"\n", position)
        end = data.index(b"\n", middle + 1)
        return self.name(data[position + 1 : middle].decode(), data[middle + 1 : end].decode())

    def begin(self, protocol: int) -> None:
        self.protocol = protocol

    def check_frame(self, opcode: str, argument: Any, position: int, length: int) -> None:
        """Raise unless the opcode at ``position`` respects the frames, as pickle writes them (PEP 3154)."""
        previous_end, is_inside = self.frame_end, position < self.frame_end
        if self.previous_position < previous_end < position:
            raise _MalformedError("an opcode crosses the end of a frame")
        self.previous_position = position
        if opcode == "FRAME":
            if is_inside and position + _FRAME_OPCODE_BYTES != previous_end:
                raise _MalformedError("a frame starts inside a frame")
            self.frame_end = position + _FRAME_OPCODE_BYTES + argument
        # The end is checked last, so that the parts of a truncated pickle are read.
        if opcode == "STOP" and self.frame_end > length:
            raise _MalformedError("a frame ends after the end of the pickle")


_LITERALS = (
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "FLOAT",
    "BINFLOAT",
)
_OPCODES: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(_LITERALS, lambda machine, argument: machine.literal(argument)),
    "NONE": lambda machine, _: machine.literal(None),
    "NEWTRUE": lambda machine, _: machine.literal(True),
    "NEWFALSE": lambda machine, _: machine.literal(False),
    "PROTO": lambda machine, argument: machine.begin(argument),
    "FRAME": lambda _machine, _: None,
    "READONLY_BUFFER": lambda _machine, _: None,
    "NEXT_BUFFER": lambda machine, _: machine.stack.append(Unknown("a buffer outside of the pickle")),
    "MARK": lambda machine, _: machine.stack.append(None),
    "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.pop(),
    "POP_MARK": lambda machine, _: machine.pop_to_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.top()),
    "EMPTY_LIST": lambda machine, _: machine.group("list", []),
    "EMPTY_TUPLE": lambda machine, _: machine.group("tuple", []),
    "EMPTY_DICT": lambda machine, _: machine.group("dict", []),
    "EMPTY_SET": lambda machine, _: machine.group("set", []),
    "LIST": lambda machine, _: machine.group("list", machine.pop_to_mark()),
    "TUPLE": lambda machine, _: machine.group("tuple", machine.pop_to_mark()),
    "DICT": lambda machine, _: machine.group("dict", machine.pairs_from_mark()),
    "FROZENSET": lambda machine, _: machine.group("frozenset", machine.pop_to_mark()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": lambda machine, _: machine.put_in([machine.pop()]),
    "APPENDS": lambda machine, _: machine.put_in(machine.pop_to_mark()),
    "ADDITEMS": lambda machine, _: machine.put_in(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.put_in([machine.pop(), machine.pop()][::-1], in_pairs=True),
    "SETITEMS": lambda machine, _: machine.put_in(machine.pairs_from_mark(), in_pairs=True),
    "PUT": lambda machine, argument: machine.remember(argument),
    "BINPUT": lambda machine, argument: machine.remember(argument),
    "LONG_BINPUT": lambda machine, argument: machine.remember(argument),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "GET": lambda machine, argument: machine.recall(argument),
    "BINGET": lambda machine, argument: machine.recall(argument),
    "LONG_BINGET": lambda machine, argument: machine.recall(argument),
    "GLOBAL": lambda machine, name: machine.stack.append(name),
    "STACK_GLOBAL": lambda machine, _: machine.stack_global(),
    "REDUCE": lambda machine, _: machine.make(),
    "NEWOBJ": lambda machine, _: machine.make(by_new=True),
    "NEWOBJ_EX": lambda machine, _: machine.make(by_new=True, with_keywords=True),
    "INST": lambda machine, name: machine.make_from_mark(name),
    "OBJ": lambda machine, _: machine.make_from_mark(None),
    "BUILD": lambda machine, _: machine.build(),
    "EXT1": lambda machine, argument: machine.stack.append(Unknown(f"extension {argument} of copyreg")),
    "EXT2": lambda machine, argument: machine.stack.append(Unknown(f"extension {argument} of copyreg")),
    "EXT4": lambda machine, argument: machine.stack.append(Unknown(f"extension {argument} of copyreg")),
    "PERSID": lambda machine, argument: machine.stack.append(Unknown(f"persistent ID {argument!r:.80}")),
    "BINPERSID": lambda machine, _: machine.persistent(),
}


def sketch(data: bytes, max_opcodes: int = MAX_OPCODES) -> Sketch:
    """Return what the pickle at the start of ``data`` would make, if it has at most ``max_opcodes`` opcodes."""
    machine = _Machine()
    problem = "it has no end"
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if machine.frame_end or opcode.name == "FRAME":
                machine.check_frame(opcode.name, argument, position or 0, len(data))
            if opcode.name == "STOP":
                node = machine.pop()
                trailing_bytes = len(data) - (position or 0) - 1
                return Sketch(node=node, trailing_bytes=trailing_bytes, names=tuple(machine.names))
            if number >= max_opcodes:
                problem = f"it has more than {max_opcodes:,} opcodes"
                break
            machine.opcodes = number
            if opcode.name in ("GLOBAL", "INST"):
                argument = machine.name_at(data, position or 0)
            _OPCODES[opcode.name](machine, argument)
    except _MalformedError as error:
        problem = str(error)
    except (ValueError, UnicodeError, IndexError, OverflowError, Warning) as error:
        # pickletools warns of an invalid escape, and a process may turn warnings into exceptions.
        problem = f"it is damaged ({str(error)[:100]})"
    parts = tuple(part for part in machine.stack if part is not None)
    return Sketch(node=None, problem=problem, parts=parts, names=tuple(machine.names))

"""What a pickle would make, without making it: its opcodes walked, and what they build drawn instead of built.

    sketch(pickle.dumps((send_welcome, (42,), {})))     # a Sketch of a tuple: a Name, a Group of a Literal, a Group

Nothing is imported and nothing of the pickle is run; each object is a node that only remembers how it would be made.
However damaged or hostile the bytes are, the answer is a :class:`Sketch`, after a bounded number of opcodes.
Source: the standard library's ``pickletools``, which says what each opcode does. Where it reads something otherwise
than the unpickler does, which is so with the names after GLOBAL and INST, it is the unpickler that is followed.
"""

from __future__ import annotations

import _compat_pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

MAX_OPCODES = 100_000
"""More than these are not looked at, unless it is said otherwise."""


@dataclass(eq=False, slots=True)
class Value:
    """Something that the pickle holds itself: a number, a text, bytes, None, True or False."""

    value: object


@dataclass(eq=False, slots=True)
class Name:
    """A module's attribute, which loading would import, under the name that it has in Python 3."""

    module: str
    qualname: str

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


Kind = Literal["tuple", "list", "dict", "set", "frozenset"]


@dataclass(eq=False, slots=True)
class Group:
    """A container; a dictionary has its keys and values in turn in ``items``."""

    kind: Kind
    items: list[Node] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Made:
    """What calling ``maker`` with ``arguments`` would return, with ``items`` put in and ``state`` set afterwards.

    With ``in_pairs`` the items are keys and values in turn; with ``by_new`` it is not ``maker`` that is called but its
    ``__new__``.
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
    """Something that only the loading process could know; ``what`` says what."""

    what: str


Node = Value | Name | Group | Made | Unknown


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What a pickle would make. ``problem`` says why it can't be known to the end, where it can't.

    ``trailing_bytes`` follow the pickle. With a problem, ``parts`` are what was there until then, outermost first.
    ``names`` are all names in the pickle, in their order.
    """

    node: Node | None
    problem: str | None = None
    parts: tuple[Node, ...] = ()
    trailing_bytes: int = 0
    names: tuple[Name, ...] = ()


class _MalformedError(Exception):
    pass


class _Machine:
    """The pickle machine's stack and memo, with nodes on them. Each method is an opcode, by its name in pickletools."""

    def __init__(self) -> None:
        self.stack: list[Node | None] = []
        """Its nodes; None is a mark."""
        self.memo: dict[int, Node] = {}
        self.names: list[Name] = []
        self.protocol = 0

    def pop(self) -> Node:
        node = self.stack[-1] if self.stack else None
        if node is None:
            raise _MalformedError("it takes something from an empty stack")
        del self.stack[-1]
        return node

    def top(self) -> Node:
        node = self.stack[-1] if self.stack else None
        if node is None:
            raise _MalformedError("it looks at an empty stack")
        return node

    def pop_to_mark(self) -> list[Node]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is None:
                found = [node for node in self.stack[index + 1 :] if node is not None]
                del self.stack[index:]
                return found
        raise _MalformedError("it looks for a mark that isn't there")

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
            raise _MalformedError("it puts something into what holds nothing")

    def pairs_from_mark(self) -> list[Node]:
        items = self.pop_to_mark()
        if len(items) % 2:
            raise _MalformedError("a key has no value")
        return items

    def remember(self, index: Any) -> None:
        self.memo[int(index)] = self.top()

    def recall(self, index: Any) -> None:
        try:
            self.stack.append(self.memo[int(index)])
        except KeyError:
            raise _MalformedError("it recalls what it never remembered") from None

    def make(self, *, by_new: bool = False, with_keywords: bool = False) -> None:
        keywords = self.pop() if with_keywords else None
        arguments = self.pop()
        self.stack.append(Made(self.pop(), arguments, keywords, by_new))

    def make_from_mark(self, name: Name | None) -> None:
        items = self.pop_to_mark()
        if name is None:
            if not items:
                raise _MalformedError("it makes an object of nothing")
            self.stack.append(Made(items[0], Group("tuple", items[1:])))
        else:
            self.stack.append(Made(name, Group("tuple", items)))

    def build(self) -> None:
        state = self.pop()
        made = self.top()
        if isinstance(made, Name) or (isinstance(made, Made) and made.state is not None):
            raise _MalformedError("it changes what it didn't make, or what is made already")
        if isinstance(made, Made):
            made.state = state

    def persistent(self) -> None:
        self.pop()
        self.stack.append(Unknown("a persistent ID"))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not (isinstance(name, Value) and isinstance(module, Value)):
            raise _MalformedError("it names something by what is no text")
        if not (isinstance(name.value, str) and isinstance(module.value, str)):
            raise _MalformedError("it names something by what is no text")
        self.stack.append(self.name(module.value, name.value))

    def name(self, module: str, qualname: str) -> Name:
        """Return what the unpickler looks up for a name, which before protocol 3 is one of Python 2."""
        if self.protocol < 3:
            if (module, qualname) in _compat_pickle.NAME_MAPPING:
                module, qualname = _compat_pickle.NAME_MAPPING[module, qualname]
            else:
                module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        self.names.append(Name(module, qualname))
        return self.names[-1]

    def name_at(self, data: bytes, position: int) -> Name:
        """Return the name after the opcode at ``position``, module and attribute on a line each.

        pickletools undoes escapes in them, which the unpickler doesn't, and joins them by a blank, which may be in one.
        """
        middle = data.index(b"\n", position)
        end = data.index(b"\n", middle + 1)
        return self.name(data[position + 1 : middle].decode(), data[middle + 1 : end].decode())

    def begin(self, protocol: int) -> None:
        self.protocol = protocol


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
    "NEXT_BUFFER": lambda machine, _: machine.stack.append(Unknown("a buffer kept elsewhere")),
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
    """Return what the pickle at the beginning of ``data`` would make, if that takes no more than ``max_opcodes``."""
    machine = _Machine()
    problem = "it has no end"
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if opcode.name == "STOP":
                node = machine.pop()
                trailing_bytes = len(data) - (position or 0) - 1
                return Sketch(node=node, trailing_bytes=trailing_bytes, names=tuple(machine.names))
            if number >= max_opcodes:
                problem = f"it has more than {max_opcodes:,} opcodes"
                break
            if opcode.name in ("GLOBAL", "INST"):
                argument = machine.name_at(data, position or 0)
            _OPCODES[opcode.name](machine, argument)
    except _MalformedError as error:
        problem = str(error)
    except (ValueError, UnicodeError, IndexError, OverflowError, Warning) as error:
        # pickletools warns of an escape that is none, and a process may have warnings raised.
        problem = f"it is damaged ({str(error)[:100]})"
    parts = tuple(part for part in machine.stack if part is not None)
    return Sketch(node=None, problem=problem, parts=parts, names=tuple(machine.names))

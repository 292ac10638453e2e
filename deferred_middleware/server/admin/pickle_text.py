"""The content of a pickle as text for people: almost the Python expression that makes the same objects.

The length of the text is limited, because a pickle of a few bytes can describe a list that fills the memory.
"""

from __future__ import annotations

import datetime
import keyword
from collections.abc import Sequence

from deferred_middleware.wire.pickle_tree import Group, Made, Name, Node, Unknown, Value

MAX_CHARACTERS = 10_000
"""Approximate length at which a text is cut off."""
MAX_LITERAL_CHARACTERS = 500
_MAX_DEPTH = 30
# Larger numbers are not converted to decimal digits; Python refuses to, by default.
_MAX_INT_BITS = 2048
_ELLIPSIS = "…"
# A pickle has these as bytes, which their constructors accept.
_TIMES = {"datetime": datetime.datetime, "date": datetime.date, "time": datetime.time}
_DELIMITERS = {
    "tuple": ("(", ")"),
    "list": ("[", "]"),
    "dict": ("{", "}"),
    "set": ("{", "}"),
    "frozenset": ("frozenset({", "})"),
}


def render(node: Node, *, max_characters: int = MAX_CHARACTERS) -> str:
    """Return ``node`` as text, with an ellipsis in place of what is left out."""
    renderer = _Renderer(max_characters)
    try:
        renderer.node(node)
    except _FullError:
        renderer.written.append(_ELLIPSIS)
    return "".join(renderer.written)


class _FullError(Exception):
    """The text has its full length."""


class _Renderer:
    """Writes nodes to :attr:`written`. Raises :class:`_FullError` after ``max_characters``."""

    def __init__(self, max_characters: int) -> None:
        self.written: list[str] = []
        self._left = max_characters
        self._open: set[int] = set()

    def write(self, text: str) -> None:
        if self._left < 0:
            raise _FullError
        self._left -= len(text)
        self.written.append(text)

    def node(self, node: Node) -> None:
        if isinstance(node, Value):
            self.write(literal(node.value))
        elif isinstance(node, Name):
            self.write(name_text(node))
        elif isinstance(node, Unknown):
            self.write(f"<{node.what}>")
        elif id(node) in self._open or len(self._open) >= _MAX_DEPTH:
            # The node contains itself, or is nested too deep to read.
            self.write(_ELLIPSIS)
        else:
            self._open.add(id(node))
            if isinstance(node, Group):
                self._group(node)
            else:
                self._made(node)
            self._open.discard(id(node))

    def _group(self, group: Group) -> None:
        if group.kind == "set" and not group.items:
            self.write("set()")
            return
        opening, closing = _DELIMITERS[group.kind]
        self.write(opening)
        self._items(group.items, in_pairs=group.kind == "dict")
        self.write(",)" if group.kind == "tuple" and len(group.items) == 1 else closing)

    def _items(self, items: Sequence[Node], *, in_pairs: bool) -> None:
        for index, item in enumerate(items):
            if index:
                self.write(": " if in_pairs and index % 2 else ", ")
            self.node(item)

    def _made(self, made: Made) -> None:
        maker, arguments, keywords, state = _simplified(made)
        attribute = _attribute(maker, arguments)
        if attribute is not None:
            self.node(arguments[0])
            self.write(f".{attribute}")
            return
        moment = _moment(maker, arguments)
        if moment is not None:
            self.write(moment)
            return
        self.node(maker)
        self.write("(")
        self._items(arguments, in_pairs=False)
        for index, (key, value) in enumerate(keywords):
            self.write(f"{', ' if index or arguments else ''}{key}=")
            self.node(value)
        self.write(")")
        if made.items:
            self.write(" with ")
            self._group(Group("dict" if made.in_pairs else "list", made.items))
        if state is not None:
            self.write(" with ")
            self.node(state)


def name_text(name: Name) -> str:
    """Return the dotted name, without ``builtins``; a name that is not legal in Python is described instead."""
    if not all(part.isidentifier() or part == "<locals>" for part in f"{name.module}.{name.qualname}".split(".")):
        return f"<name {literal(name.qualname)} of {literal(name.module)}>"
    return name.qualname if name.module == "builtins" else str(name)


def literal(value: object) -> str:
    """Return a literal as Python writes it; if it is long, its beginning and its length."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _MAX_INT_BITS:
        return f"<a whole number of {value.bit_length():,} bits>"
    if isinstance(value, (str, bytes, bytearray)) and len(value) > MAX_LITERAL_CHARACTERS:
        unit = "characters" if isinstance(value, str) else "bytes"
        return f"{value[:MAX_LITERAL_CHARACTERS]!r}{_ELLIPSIS} ({len(value):,} {unit})"
    return repr(value)


def keyword_pairs(node: Node | None) -> list[tuple[str, Node]] | None:
    """Return a dictionary of keyword arguments as pairs; None if ``node`` is anything else."""
    if not isinstance(node, Group) or node.kind != "dict":
        return None
    pairs = []
    for key, value in zip(node.items[::2], node.items[1::2], strict=True):
        if not (isinstance(key, Value) and isinstance(key.value, str)):
            return None
        name = key.value
        # With **{…}, Python accepts any string as a keyword.
        pairs.append((name if name.isidentifier() and not keyword.iskeyword(name) else literal(name), value))
    return pairs


def _simplified(made: Made) -> tuple[Node, list[Node], list[tuple[str, Node]], Node | None]:
    """Return maker, arguments, keywords and state, without the detours that the standard library takes."""
    maker, state = made.maker, made.state
    arguments = made.arguments.items if isinstance(made.arguments, Group) else [made.arguments]
    keywords = keyword_pairs(made.keywords) or []
    if isinstance(maker, Name):
        if str(maker) == "copyreg._reconstructor" and arguments:
            # Before protocol 2, plain objects are pickled like this.
            maker, arguments = arguments[0], []
        elif str(maker) == "functools.partial" and isinstance(state, Group) and len(state.items) == 4:
            func, given, given_keywords, attributes = state.items
            arguments = [func, *(given.items if isinstance(given, Group) else [given])]
            keywords = keyword_pairs(given_keywords) or []
            state = attributes if isinstance(attributes, Group) and attributes.items else None
    return maker, list(arguments), keywords, state


def _attribute(maker: Node, arguments: Sequence[Node]) -> str | None:
    """Return the attribute's name if the maker is ``getattr``, as for a bound method; otherwise None."""
    if isinstance(maker, Name) and name_text(maker) == "getattr" and len(arguments) == 2:
        name = arguments[1]
        if isinstance(name, Value) and isinstance(name.value, str) and name.value.isidentifier():
            return name.value
    return None


def _moment(maker: Node, arguments: Sequence[Node]) -> str | None:
    """Return a date or time without a time zone as Python writes it; None for anything else."""
    if not (isinstance(maker, Name) and maker.module == "datetime" and maker.qualname in _TIMES and arguments):
        return None
    packed = arguments[0]
    if len(arguments) > 1 or not isinstance(packed, Value) or not isinstance(packed.value, (bytes, str)):
        return None
    try:
        return repr(_TIMES[maker.qualname](packed.value))
    except (TypeError, ValueError):
        return None

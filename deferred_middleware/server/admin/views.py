"""A task's body as a person can read it.

Nothing is ever unpickled: see :mod:`~deferred_middleware.wire.pickle_tree`.

    view = view_of(body)
    view.text           # "mail.send_welcome(42, subject='hello')"
    view.callable       # "mail.send_welcome"

A body is a pickled call, compressed or not, a reference to one that is kept in the datastore, or whatever else an app
posts to its own URLs.

Tasks, queues and attempts as JSON, for the API and whoever shows them to a person.

Names ending in ``_usec`` are microseconds, since the epoch or of a duration; bytes are shown as text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zlib
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from deferred_middleware.server.admin.pickle_text import MAX_CHARACTERS, keyword_pairs, literal, render
from deferred_middleware.server.store.records import AttemptRecord, StoredTask, TaskSummary
from deferred_middleware.wire import protocol
from deferred_middleware.wire.compression import Decompressed, decompress, looks_compressed
from deferred_middleware.wire.pickle_tree import Group, Made, Name, Node, Sketch, Value, sketch

MAX_BODY_BYTES = 10 * 1024 * 1024
"""Of a compressed body no more than so much is unpacked."""

_MAX_TEXT_CHARACTERS = 4000
_MAX_BYTES_SHOWN = 256

Kind = Literal["call", "pickle", "overflow", "text", "bytes", "empty"]


@dataclass(frozen=True, kw_only=True)
class PayloadView:
    """What is in a body.

    ``text`` is always there, for people. For a call ``callable``, ``args`` and ``kwargs`` are its parts as text;
    ``problem`` says what about it is wrong or not known.
    """

    kind: Kind
    text: str
    callable: str | None = None
    args: list[str] = field(default_factory=list)
    kwargs: dict[str, str] = field(default_factory=dict)
    compressed: bool = False
    problem: str | None = None


def view_of(body: bytes) -> PayloadView:
    """Return what is in ``body``."""
    if not body:
        return PayloadView(kind="empty", text="")
    if body.startswith(protocol.OVERFLOW_MAGIC):
        return _overflow(body[len(protocol.OVERFLOW_MAGIC) :])
    if looks_compressed(body):
        # Other content may begin like compressed data.
        with contextlib.suppress(zlib.error):
            found = decompress(body, MAX_BODY_BYTES)
            return _content(found.content, compressed=True, problem=_compression_problem(found))
    return _content(body, compressed=False, problem=None)


def _content(data: bytes, *, compressed: bool, problem: str | None) -> PayloadView:
    # Before protocol 2 a pickle doesn't say that it is one; a pickled tuple begins with a mark.
    if data[:1] == b"\x80" or (data[:1] == b"(" and data[-1:] == b"."):
        drawn = sketch(data)
        if data[:1] == b"\x80" or drawn.problem is None:
            return _pickle(drawn, compressed=compressed, problem=problem)
    try:
        text = data.decode()
        if not all(character.isprintable() or character in "\r\n\t" for character in text):
            raise ValueError
    except ValueError:
        more = "…" if len(data) > _MAX_BYTES_SHOWN else ""
        text = f"{len(data):,} bytes: {data[:_MAX_BYTES_SHOWN].hex(' ', 4)}{more}"
        return PayloadView(kind="bytes", text=text, compressed=compressed, problem=problem)
    if len(text) > _MAX_TEXT_CHARACTERS:
        text = f"{text[:_MAX_TEXT_CHARACTERS]}… ({len(text):,} characters)"
    return PayloadView(kind="text", text=text, compressed=compressed, problem=problem)


def _pickle(drawn: Sketch, *, compressed: bool, problem: str | None) -> PayloadView:
    if drawn.node is None:
        shown = " ".join(render(part) for part in drawn.parts[:8])
        problem = problem or f"the pickle can't be read to its end: {drawn.problem}"
        first = drawn.parts[0] if drawn.parts else None
        name = render(first) if isinstance(first, (Name, Made)) else None
        return PayloadView(kind="pickle", text=shown, callable=name, compressed=compressed, problem=problem)
    if drawn.trailing_bytes:
        problem = problem or f"{drawn.trailing_bytes:,} bytes follow the pickle"
    parts = _call_parts(drawn.node)
    if parts is None:
        return PayloadView(kind="pickle", text=render(drawn.node), compressed=compressed, problem=problem)
    func, args, kwargs = parts
    left = MAX_CHARACTERS
    shown_args: list[str] = []
    for value in args:
        shown_args.append(render(value, max_characters=left))
        left -= len(shown_args[-1]) + 1
        if left < 0:
            break
    shown_kwargs: dict[str, str] = {}
    for name, value in kwargs:
        if left < 0:
            break
        shown_kwargs[name] = render(value, max_characters=left)
        left -= len(name) + len(shown_kwargs[name]) + 1
    if left < 0:
        problem = problem or "it is too long to be shown whole"
    arguments = ", ".join([*shown_args, *(f"{name}={value}" for name, value in shown_kwargs.items())])
    return PayloadView(
        kind="call",
        text=f"{func}({arguments})",
        callable=func,
        args=shown_args,
        kwargs=shown_kwargs,
        compressed=compressed,
        problem=problem,
    )


def _call_parts(node: Node) -> tuple[str, list[Node], list[tuple[str, Node]]] | None:
    """Return callable, arguments and keywords of a ``(callable, args, kwargs)``; None if it is none."""
    if not (isinstance(node, Group) and node.kind == "tuple" and len(node.items) == 3):
        return None
    func, given, given_keywords = node.items
    keywords = keyword_pairs(given_keywords)
    if not isinstance(func, (Name, Made)) or not isinstance(given, Group) or keywords is None:
        return None
    args = list(given.items)
    # google.appengine.ext.deferred writes obj.method(…) so.
    if isinstance(func, Name) and str(func).endswith("deferred.deferred.invoke_member") and len(args) >= 2:
        member = args[1]
        if isinstance(member, Value) and isinstance(member.value, str):
            return f"{render(args[0])}.{member.value}", args[2:], keywords
    return render(func), args, keywords


def _overflow(reference: bytes) -> PayloadView:
    try:
        told = json.loads(reference)
        if not isinstance(told, dict):
            raise ValueError
    except ValueError:
        problem = "the reference to a payload in the datastore is damaged"
        return PayloadView(kind="overflow", text=literal(reference), problem=problem)
    shown = ", ".join(f"{str(key)[:40]} {literal(value)}" for key, value in list(told.items())[:10])
    return PayloadView(kind="overflow", text=f"kept in the datastore: {shown}")


def _compression_problem(found: Decompressed) -> str | None:
    if found.exceeds_limit:
        return f"the decompressed payload has more than {MAX_BODY_BYTES:,} bytes, of which these are the first"
    if found.is_cut_off:
        return "the compressed payload is cut off"
    if found.trailing_bytes:
        return f"{found.trailing_bytes:,} bytes follow the compressed payload"
    return None


def function_in(url: str) -> str | None:
    """Return the function that a task's URL names, as ``module/function``; None for an URL of the app's own."""
    path = url.partition("?")[0]
    if not path.startswith(protocol.URL_PREFIX + "/"):
        return None
    return unquote(path[len(protocol.URL_PREFIX) + 1 :])


def task_summary(task: TaskSummary) -> dict[str, Any]:
    """Return a task without its headers and its body."""
    names = [field.name for field in dataclasses.fields(TaskSummary)]
    content = {name: getattr(task, name) for name in names}
    content["retry"] = None if task.retry is None else dataclasses.asdict(task.retry)
    return {**content, "function": function_in(task.url)}


def task_whole(task: StoredTask, attempts: list[AttemptRecord]) -> dict[str, Any]:
    """Return a task with its headers, its call as far as it can be read, and its attempts."""
    return {
        **task_summary(task),
        "headers": [list(header) for header in task.headers],
        "body_bytes": len(task.body),
        "payload": dataclasses.asdict(view_of(task.body)),
        "attempts": [
            {**dataclasses.asdict(attempt), "excerpt": attempt.excerpt.decode("utf-8", "replace")}
            for attempt in attempts
        ],
    }

"""Tasks and attempts as JSON, with each task's body as text that a person can read.

    view = view_of(body)
    view.text           # "mail.send_welcome(42, subject='hello')"
    view.callable       # "mail.send_welcome"

A body is a pickled call, which may be compressed; a reference to a payload in the datastore; or anything else that an
app posts to its own URLs. The server never unpickles a body; see :mod:`~deferred_middleware.wire.pickle_tree`.

Names that end in ``_usec`` are microseconds, of a duration or since the epoch. Bytes are shown as text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import zlib
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import unquote

from deferred_middleware.server.admin.pickle_text import MAX_CHARACTERS, keyword_pairs, literal, render
from deferred_middleware.server.store.records import AttemptRecord, StoredTask, TaskSummary
from deferred_middleware.wire import protocol
from deferred_middleware.wire.compression import Decompressed, decompress, looks_compressed
from deferred_middleware.wire.pickle_tree import Group, Made, Name, Node, Sketch, Value, django_task_name, sketch

MAX_BODY_BYTES = 10 * 1024 * 1024
"""How much of a compressed body is decompressed."""

_MAX_TEXT_CHARACTERS = 4000
_MAX_BYTES_SHOWN = 256
_MAX_SMALL_BYTES = 2000

Kind = Literal["call", "pickle", "overflow", "text", "bytes", "empty"]


@dataclass(frozen=True, kw_only=True)
class PayloadView:
    """The content of a body, for people.

    ``text`` is the whole content. For a call, ``callable``, ``args`` and ``kwargs`` are its parts as text. ``problem``
    describes what is wrong or unknown.
    """

    kind: Kind
    text: str
    callable: str | None = None
    args: list[str] = field(default_factory=list)
    kwargs: dict[str, str] = field(default_factory=dict)
    compressed: bool = False
    problem: str | None = None


_SIGNATURE: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)


def view_of(body: bytes) -> PayloadView:
    """Return the content of ``body``."""
    # A list is shown again and again, and most of its tasks are the same.
    return _view_of_small(body) if len(body) <= _MAX_SMALL_BYTES else _view_of(body)


def _view_of(body: bytes) -> PayloadView:
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


_view_of_small = functools.lru_cache(maxsize=500)(_view_of)


def _content(data: bytes, *, compressed: bool, problem: str | None) -> PayloadView:
    # Before protocol 2, pickles have no header. A pickled tuple begins with a mark.
    if data[:1] == b"\x80" or (data[:1] == b"(" and data[-1:] == b"."):
        pickled = sketch(data)
        if data[:1] == b"\x80" or pickled.problem is None:
            return _pickle(pickled, compressed=compressed, problem=problem)
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


def _pickle(pickled: Sketch, *, compressed: bool, problem: str | None) -> PayloadView:
    if pickled.node is None:
        shown = " ".join(render(part) for part in pickled.parts[:8])
        problem = problem or f"the pickle can't be read to its end: {pickled.problem}"
        first = pickled.parts[0] if pickled.parts else None
        name = render(first) if isinstance(first, (Name, Made)) else None
        return PayloadView(kind="pickle", text=shown, callable=name, compressed=compressed, problem=problem)
    if pickled.trailing_bytes:
        problem = problem or f"{pickled.trailing_bytes:,} bytes follow the pickle"
    parts = _call_parts(pickled.node)
    if parts is None:
        return PayloadView(kind="pickle", text=render(pickled.node), compressed=compressed, problem=problem)
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
        problem = problem or "it is too long to be shown as a whole"
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
    """Return the parts of a ``(callable, args, kwargs)``; None for anything else."""
    if not (isinstance(node, Group) and node.kind == "tuple" and len(node.items) == 3):
        return None
    func, given, given_keywords = node.items
    keywords = keyword_pairs(given_keywords)
    if not isinstance(func, (Name, Made)) or not isinstance(given, Group) or keywords is None:
        return None
    args = list(given.items)
    # google.appengine.ext.deferred pickles obj.method(…) as invoke_member(obj, "method", …).
    if isinstance(func, Name) and str(func).endswith("deferred.deferred.invoke_member") and len(args) >= 2:
        member = args[1]
        if isinstance(member, Value) and isinstance(member.value, str):
            return f"{render(args[0])}.{member.value}", args[2:], keywords
    return render(django_task_name(func) or func), args, keywords


def _overflow(reference: bytes) -> PayloadView:
    try:
        fields = json.loads(reference)
        if not isinstance(fields, dict):
            raise ValueError
    except (ValueError, RecursionError):
        problem = "the reference to a payload in the datastore is damaged"
        return PayloadView(kind="overflow", text=literal(reference), problem=problem)
    shown = ", ".join(f"{str(key)[:40]} {literal(value)}" for key, value in list(fields.items())[:10])
    return PayloadView(kind="overflow", text=f"kept in the datastore: {shown}")


def _compression_problem(found: Decompressed) -> str | None:
    if found.exceeds_limit:
        return f"the decompressed payload has more than {MAX_BODY_BYTES:,} bytes, of which these are the first"
    if found.is_cut_off:
        return "the compressed payload is cut off"
    if found.trailing_bytes:
        return f"{found.trailing_bytes:,} bytes follow the compressed payload"
    return None


def function_from_url(url: str) -> str | None:
    """Return the function in a task's URL, as ``module/function``; None for one of the app's own URLs."""
    path = url.partition("?")[0]
    if not path.startswith(protocol.URL_PREFIX + "/"):
        return None
    return unquote(path[len(protocol.URL_PREFIX) + 1 :])


def task_summary(task: TaskSummary) -> dict[str, Any]:
    """Return a task without headers and body."""
    names = [field.name for field in dataclasses.fields(TaskSummary)]
    content = {name: getattr(task, name) for name in names}
    content["retry"] = None if task.retry is None else dataclasses.asdict(task.retry)
    return {**content, "function": function_from_url(task.url)}


def task_details(task: StoredTask, attempts: list[AttemptRecord]) -> dict[str, Any]:
    """Return a task with its headers, its payload as text, and its attempts. Signatures and credentials are masked."""
    return {
        **task_summary(task),
        "headers": [[name, _shown(name, value)] for name, value in task.headers],
        "body_bytes": len(task.body),
        "payload": dataclasses.asdict(view_of(task.body)),
        "attempts": [
            {**dataclasses.asdict(attempt), "excerpt": attempt.excerpt.decode("utf-8", "replace")}
            for attempt in attempts
        ],
    }


def _shown(name: str, value: str) -> str:
    """Return the value of a header for people: nobody can send a task again with what is shown."""
    key = protocol.environ_key(name)
    if key == _SIGNATURE:
        claims, mark, _ = value.rpartition(";s=")
        return f"{claims}{mark}…"  # which key, when it was signed and how long it is valid
    return "…" if key in protocol.SECRET_ENVIRON_KEYS else value

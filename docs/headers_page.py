"""Write ``headers.rst``, the manual's reference of headers and log fields, from the constants and these tables.

Run ``python docs/headers_page.py``. Tests compare the page with the constants, and the fields with a record.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from deferred_middleware.wire import protocol

PAGE = Path(__file__).with_name("headers.rst")
_HEAD = """\
======================
Headers and log fields
======================

..
    Written by headers_page.py.

A task is a POST request. Each header of the library begins with ``X-Deferred-``. You can't set them
yourself: ``defer`` refuses these names in ``_headers``. :doc:`tasks` has what a task can know
without reading headers.
"""
_PLATFORM = """\
``current_task()`` reads these headers of the queue. A task that Cloud Tasks delivers to a URL has
the names in the last column.
"""
_FIELDS = """\
Each record of a task in the logger ``deferred_middleware`` has these fields in
``record.json_fields["deferred_task"]``. :doc:`tasks` says when which record is written.
"""

PLATFORM: Mapping[str, tuple[str, str, str]] = {
    "name": (protocol.TASK_NAME_HEADER, protocol.CLOUD_TASKS_TASK_NAME_HEADER, "The name of the task."),
    "queue": (protocol.QUEUE_NAME_HEADER, protocol.CLOUD_TASKS_QUEUE_NAME_HEADER, "The name of its queue."),
    "retry_count": (
        protocol.RETRY_COUNT_HEADER,
        protocol.CLOUD_TASKS_RETRY_COUNT_HEADER,
        "The number of earlier attempts.",
    ),
    "execution_count": (
        protocol.EXECUTION_COUNT_HEADER,
        protocol.CLOUD_TASKS_EXECUTION_COUNT_HEADER,
        "The number of earlier attempts that got a response; with a URL, of those other than 500 and 503.",
    ),
    "eta": (protocol.ETA_HEADER, protocol.CLOUD_TASKS_ETA_HEADER, "The ETA, in seconds since 1970."),
    "previous_response": (
        protocol.PREVIOUS_RESPONSE_HEADER,
        protocol.CLOUD_TASKS_PREVIOUS_RESPONSE_HEADER,
        "The status of the last attempt. After a timeout it is 0; with a URL, it is 504.",
    ),
    "retry_reason": (
        protocol.RETRY_REASON_HEADER,
        protocol.CLOUD_TASKS_RETRY_REASON_HEADER,
        "Why the task is tried again, such as ``App Error``; with a URL, it is empty.",
    ),
}
"""For each attribute of the context: the header on App Engine, the one with a URL, and what it says."""

FIELDS: Mapping[str, tuple[str, str]] = {
    "function": ("text", "The call's label, ``module/qualname``."),
    "queue": ("text", "The name of the queue."),
    "name": ("text", "The name of the task."),
    "attempt": ("number", "The number of this attempt, from 1."),
    "milliseconds": ("number", "How long the attempt took."),
    "outcome": ("text", "How it ended: a value of ``Outcome`` (:doc:`api`)."),
    "service": ("text or null", "The service that ran the task."),
    "version": ("text or null", "Its version."),
    "call": ("text", "If it failed: the call, with its arguments as ``DEFERRED_LOG_ARGUMENTS`` allows."),
    "error": ("text", "If it failed: the name of the exception's type."),
}


def ours() -> dict[str, str]:
    """Return the library's headers of a task, and what each says, from the constants' docstrings."""
    found = {}
    body = ast.parse(inspect.getsource(protocol)).body
    for statement, documentation in itertools.pairwise(body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        name = getattr(protocol, statement.target.id)
        if isinstance(name, str) and name.startswith(protocol.OUR_HEADER_PREFIX) and name != protocol.OUR_HEADER_PREFIX:
            assert isinstance(documentation, ast.Expr)
            found[name] = inspect.cleandoc(ast.literal_eval(documentation.value))
    return found


def _plain(text: str) -> str:
    """Return a docstring with its references as plain literals, in one line."""
    with_values = re.sub(r":data:`(\w+)`", lambda match: f"``{getattr(protocol, match[1])}``", " ".join(text.split()))
    return re.sub(r":\w+:`([^`]+)`", r"``\1``", with_values)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for cells in [head, *rows]:
        for place, cell in enumerate(cells):
            lines += textwrap.wrap(
                cell,
                width=100,
                initial_indent=f"   {'*' if place == 0 else ' '} - ",
                subsequent_indent="       ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines) + "\n"


def _section(title: str, text: str, table: str) -> str:
    return "\n".join(["", title, "=" * len(title), "", *([text] if text else []), table])


def page() -> str:
    """Return the page."""
    kinds: dict[str, list[tuple[str, str]]] = {"Request header": [], "Response header": []}
    for name, documentation in ours().items():
        kind, _, meaning = _plain(documentation).partition(": ")
        kinds[kind].append((f"``{name}``", meaning[0].upper() + meaning[1:]))
    head = ("Header", "Meaning")
    platform = [
        (f"``{attribute}``", f"``{standard}``", meaning, f"``{with_url}``")
        for attribute, (standard, with_url, meaning) in PLATFORM.items()
    ]
    fields = [(f"``{name}``", kind, meaning) for name, (kind, meaning) in FIELDS.items()]
    return (
        _HEAD
        + _section("Headers of the library, in requests", "", _table(head, kinds["Request header"]))
        + _section("Headers of the library, in responses", "", _table(head, kinds["Response header"]))
        + _section(
            "Headers of the queue", _PLATFORM, _table(("Attribute", "Header", "Meaning", "With a URL"), platform)
        )
        + _section("Log fields", _FIELDS, _table(("Field", "Type", "Meaning"), fields))
    )


if __name__ == "__main__":
    PAGE.write_text(page())

"""Print the answers of commands: JSON, lines, tables, and times and numbers in words."""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
import time
from collections.abc import Sequence

from deferred_middleware.errors.text import printable

_GAP = "  "
_MIN_COLUMN_WIDTH = 12
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def print_json(content: object) -> None:
    """Print ``content`` as JSON."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def print_line(text: str) -> None:
    """Print a line of text."""
    sys.stdout.write(text + "\n")


def print_answer(arguments: argparse.Namespace, answer: object, sentence: str) -> None:
    """Print the server's ``answer`` as JSON if ``--json`` is given, otherwise ``sentence``."""
    if arguments.json:
        print_json(answer)
    else:
        print_line(sentence)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print rows under their headings, the columns named in ``right`` aligned right.

    On a terminal the last column is shortened to the terminal's width.
    """
    cells = [list(headings), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    if sys.stdout.isatty():
        other_columns = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
        widths[-1] = max(_MIN_COLUMN_WIDTH, min(widths[-1], shutil.get_terminal_size().columns - other_columns))
    for row in cells:
        parts = []
        for heading, width, cell in zip(headings, widths, row, strict=True):
            text = cell if len(cell) <= width else cell[: width - 1] + "…"
            parts.append(text.rjust(width) if heading in right else text.ljust(width))
        print_line(_GAP.join(parts).rstrip())


def printable_lines(text: str) -> list[str]:
    """Return the lines of ``text``, each :func:`printable`."""
    return [printable(line.expandtabs()) for line in text.splitlines()]


def local_time(usec: int | None) -> str:
    """Return a time in the local time zone, to the millisecond; ``-`` for None."""
    if usec is None:
        return "-"
    try:
        when = datetime.datetime.fromtimestamp(usec / 1e6).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{usec / 1e6:.0f} s since 1970"
    return when.isoformat(sep=" ", timespec="milliseconds")


def relative_time(usec: int | None) -> str:
    """Return a time relative to now, such as ``in 3 s`` or ``5 min ago``; ``-`` for None."""
    if usec is None:
        return "-"
    seconds = usec / 1e6 - time.time()
    if abs(seconds) < 1:
        return "now"
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def duration(seconds: float) -> str:
    """Return a duration in the largest unit of which it has at least two, such as ``90 s`` or ``3 min``."""
    for unit_seconds, unit in _UNITS:
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def count(number: int, singular: str, plural: str | None = None) -> str:
    """Return a number of things, such as ``1 task`` or ``3 tasks``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"

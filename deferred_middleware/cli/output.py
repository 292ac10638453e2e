"""Tables, times and numbers as the commands print them for people."""

from __future__ import annotations

import datetime
import json
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

_GAP = "  "
_MIN_CUT = 12
_STEPS = ((86400 * 2, 86400, "d"), (3600 * 2, 3600, "h"), (60 * 2, 60, "min"))


def print_json(content: object) -> None:
    """Print an answer of the server for machines."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def say(text: str) -> None:
    """Print a line for people."""
    sys.stdout.write(text + "\n")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[str] = ()) -> None:
    """Print rows under their headings; the columns in ``right`` are numbers. A terminal has the last one cut to fit."""
    cells = [list(headings), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    if sys.stdout.isatty():
        before = sum(widths[:-1]) + len(_GAP) * (len(widths) - 1)
        widths[-1] = max(_MIN_CUT, min(widths[-1], shutil.get_terminal_size().columns - before))
    for row in cells:
        shown = []
        for heading, width, cell in zip(headings, widths, row, strict=True):
            cut = cell if len(cell) <= width else cell[: width - 1] + "…"
            shown.append(cut.rjust(width) if heading in right else cut.ljust(width))
        say(_GAP.join(shown).rstrip())


def printable(text: str) -> str:
    """Return ``text`` with what would steer the terminal escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable_lines(text: str) -> list[str]:
    """Return the lines of ``text``, each printable."""
    return [printable(line.expandtabs()) for line in text.splitlines()]


def moment(usec: int | None) -> str:
    """Return a time as people write it, in the local time zone."""
    if usec is None:
        return "-"
    try:
        when = datetime.datetime.fromtimestamp(usec / 1e6).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{usec / 1e6:.0f} s since 1970"
    return when.isoformat(sep=" ", timespec="milliseconds")


def distance(usec: int | None) -> str:
    """Return how far a time is from now: ``in 3 s``, ``5 min ago``."""
    if usec is None:
        return "-"
    seconds = usec / 1e6 - time.time()
    if abs(seconds) < 1:
        return "now"
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def duration(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    for least, unit_seconds, unit in _STEPS:
        if seconds >= least:
            return f"{seconds / unit_seconds:,.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def count(number: int, what: str) -> str:
    """Return a number of something: ``1 task``, ``3 tasks``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def of_task(task: dict[str, Any]) -> str:
    """Return what a task runs, as shortly as can be said."""
    return str(task["function"] or task["url"])

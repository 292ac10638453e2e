"""Numbers, times and the texts of tasks as the pages show them."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

# What a browser would not show, or would show somewhere else: controls, lone surrogates, characters without width, and
# those that change the direction of what follows. Line ends and tabs are kept.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
# As the store and the package choose names.
_GENERATED = re.compile(r"[0-9]{18,22}|[0-9a-f]{32}")
NOTHING = "—"
"""Stands where there is no value."""


def visible(value: object) -> object:
    """Return a value as text in which nothing is invisible: every other character is shown as its escape."""
    if isinstance(value, Markup):
        return value
    text = value if isinstance(value, str) else str(value)
    if text.isascii() and text.isprintable():
        return text
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def shortened(text: str, length: int = 200) -> str:
    """Return the beginning of a text, with an ellipsis if there is more."""
    return text if len(text) <= length else text[: length - 1] + "…"


def number(value: float | None) -> str:
    """Return a number with separators."""
    if value is None:
        return NOTHING
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def plural(value: int, singular: str, more: str | None = None) -> str:
    """Return a number of things, such as ``1 task`` or ``3 tasks``."""
    return f"{value:,} {singular if value == 1 else more or singular + 's'}"


def duration(seconds: float | None) -> str:
    """Return a duration in the largest unit of which it has at least two."""
    if seconds is None:
        return NOTHING
    for unit_seconds, unit in _UNITS:
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:,.0f} {unit}"
    if seconds >= 10:
        return f"{seconds:.0f} s"
    if seconds >= 1:
        return f"{seconds:.1f} s"
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def retries(policy: Mapping[str, Any]) -> str:
    """Return a retry policy, such as ``at most 3 retries, after 100 ms to 60 min, doubled up to 16 times``."""
    limits = []
    if policy["retry_limit"] is not None:
        limits.append(f"at most {plural(policy['retry_limit'], 'retry', 'retries')}")
    if policy["age_limit_seconds"] is not None:
        limits.append(f"for {duration(policy['age_limit_seconds'])}")
    waits = f"after {duration(policy['min_backoff_seconds'])} to {duration(policy['max_backoff_seconds'])}"
    times = f"doubled up to {plural(policy['max_doublings'], 'time')}"
    return ", ".join([" and ".join(limits) or "without a limit", waits, times])


def moment(usec: int | None) -> Markup:
    """Return a time relative to now, as an element that the script keeps up to date; the exact time is its title."""
    if usec is None:
        return Markup(NOTHING)
    return _time(usec, "", relative(usec))


def age(usec: int) -> Markup:
    """Return how long ago a time was, as an element that the script keeps up to date."""
    return _time(usec, " data-age", _whole(max(0.0, time.time() - usec / 1e6)))


def relative(usec: int, now: float | None = None) -> str:
    """Return a time relative to now, such as ``in 3 s`` or ``5 min ago``."""
    seconds = usec / 1e6 - (time.time() if now is None else now)
    if abs(seconds) < 1:
        return "now"
    text = _whole(abs(seconds))
    return f"in {text}" if seconds > 0 else f"{text} ago"


def clock(usec: int | None) -> str:
    """Return a time in the server's time zone, to the millisecond."""
    if usec is None:
        return NOTHING
    return _clock(usec, _datetime(usec))


def _clock(usec: int, when: datetime.datetime | None) -> str:
    if when is None:
        return f"{usec / 1e6:.0f} s since 1970"
    return when.replace(tzinfo=None).isoformat(" ", "milliseconds")


def _whole(seconds: float) -> str:
    for unit_seconds, unit in _UNITS:
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:,.0f} {unit}"
    return f"{seconds:.0f} s"


def _time(usec: int, attribute: str, text: str) -> Markup:
    when = _datetime(usec)
    iso = "" if when is None else when.isoformat(timespec="milliseconds")
    # Nothing in it needs to be escaped, and there is one for each row of a list.
    return Markup(f'<time datetime="{iso}" title="{_clock(usec, when)}" data-usec="{usec}"{attribute}>{text}</time>')


def _datetime(usec: int) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromtimestamp(usec / 1e6).astimezone()
    except (OverflowError, ValueError, OSError):
        return None


def phase(task: Mapping[str, Any]) -> str:
    """Return the state of a task in a word; for a ready one, what it waits for."""
    state = str(task["state"])
    if state != "ready":
        return state
    later = task["eta_usec"] > time.time() * 1e6
    if task["method"] == "PULL":
        return "leased" if later and task["retry_count"] else "leasable"
    return ("retrying" if task["retry_count"] else "scheduled") if later else "waiting"


def address(value: str) -> str:
    """Return a text as one part of a path, also if it has a slash."""
    return quote(value, safe="", errors="replace")


def is_chosen(name: str) -> bool:
    """Tell whether a task's name looks as if the app had chosen it, and neither this server nor the package."""
    return _GENERATED.fullmatch(name) is None

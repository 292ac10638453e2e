"""A search for tasks, from the parameters of a URL: those of the page, and those of the JSON API."""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.store.listing.filters import Destination, TaskFilter
from deferred_middleware.server.store.queries import Waiting
from deferred_middleware.server.store.records import State

STATES: tuple[str, ...] = get_args(State)
WAITING: tuple[str, ...] = get_args(Waiting)
DUE = "due"

PARAMETERS = ("queue", "state", "function", "service", "name", "text", "older", "newer", "slower", "faster")
"""The parameters of a search."""

_MAX_TEXT_CHARACTERS = 1000
_MAX_SECONDS = 1e9
_DURATION = re.compile(r"(?P<number>[0-9]{1,12}(\.[0-9]{1,6})?) ?(?P<unit>ms|s|m|min|h|d)?")
_UNIT_SECONDS = {"ms": 0.001, "s": 1, None: 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, kw_only=True)
class TaskSearch:
    """Which tasks to find. ``state`` may also be what a ready task waits for; ``function`` is a part of the URL."""

    queue: str | None = None
    state: str | None = None
    function: str | None = None
    service: str | None = None
    name: str | None = None
    text: str | None = None
    older: float | None = None
    newer: float | None = None
    slower: float | None = None
    faster: float | None = None

    def task_filter(self, destination_of: Callable[[str], Destination]) -> TaskFilter:
        """Return what the store has to check besides queue, state and function."""
        return TaskFilter(
            name=self.name,
            text=self.text,
            older_seconds=self.older,
            newer_seconds=self.newer,
            slower_seconds=self.slower,
            faster_seconds=self.faster,
            destination=None if self.service is None else destination_of(self.service),
            due=self.state == DUE,
        )


def search_of(given: Mapping[str, str]) -> TaskSearch:
    """Return the search that parameters ask for; empty ones ask for nothing.

    Raises :class:`OperationError` with a sentence if one of them means nothing.
    """
    asked = {name: given[name] for name in PARAMETERS if given.get(name)}
    for name, value in asked.items():
        if len(value) > _MAX_TEXT_CHARACTERS:
            raise bad(f"{name} may have at most {_MAX_TEXT_CHARACTERS:,} characters.")
    state = asked.get("state")
    states = (*STATES, DUE, *WAITING)
    if state is not None and state not in states:
        raise bad(f"state={state!r} is not a state; the states are {', '.join(states)}.")
    spans = {name: _seconds(name, asked[name]) for name in ("older", "newer", "slower", "faster") if name in asked}
    for least, most in (("older", "newer"), ("slower", "faster")):
        if least in spans and most in spans and spans[least] > spans[most]:
            raise bad(f"No task is both: {least}={asked[least]} and {most}={asked[most]}.")
    texts = {name: asked.get(name) for name in ("queue", "state", "function", "service", "name", "text")}
    return TaskSearch(**texts, **spans)  # type: ignore[arg-type] # texts and numbers, by name


def _seconds(name: str, text: str) -> float:
    found = _DURATION.fullmatch(text.strip())
    seconds = float(found["number"]) * _UNIT_SECONDS[found["unit"]] if found else _MAX_SECONDS + 1
    if seconds > _MAX_SECONDS:
        raise bad(f"{name}={text[:40]!r} is not a duration, such as 250ms, 10s, 5min, 2h or 1d.")
    return seconds


def described(search: TaskSearch) -> str:
    """Return a search in words."""
    given = {name: value for name in PARAMETERS if (value := getattr(search, name)) is not None}
    return ", ".join(f"{name} {value}" for name, value in given.items()) or "everything"


def moment_in(text: str) -> int:
    """Return the time that a person wrote, in microseconds: ``10min`` from now, or ``2026-12-24 18:00``.

    Raises :class:`OperationError` for anything else.
    """
    text = text.strip()
    try:
        if "-" not in text:
            return int((time.time() + _seconds("ETA", text)) * 1e6)
        return int(datetime.datetime.fromisoformat(text).timestamp() * 1e6)
    except (OperationError, ValueError, OverflowError, OSError):
        raise bad(f"{text[:40]!r} is not a time, such as 10min, 2h or 2026-12-24 18:00.") from None

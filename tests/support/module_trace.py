"""Record which modules of the package a call enters. Tests use it to check that the call path is short.

way = trace(lambda: defer(sample.note, 1))
assert way.modules == ("deferred_middleware.enqueue.api", …)
assert way.entered_again == ()
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from types import FrameType

from tests.support.repository import ROOT

PACKAGE = "deferred_middleware"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """The path of one call through the modules of the package."""

    modules: tuple[str, ...]
    """The modules, in the order of their first entry."""
    entries: tuple[tuple[str, str], ...]
    """Each call from one module to another: the calling module (empty outside the package) and the called module."""

    @property
    def entered_again(self) -> tuple[tuple[str, str], ...]:
        """The calls into a module that was entered before, whether or not it has returned since."""
        seen: set[str] = set()
        again = []
        for caller, called in self.entries:
            if called in seen:
                again.append((caller, called))
            seen.add(called)
        return tuple(again)

    @property
    def upward(self) -> tuple[tuple[str, str], ...]:
        """The calls that close a cycle: the called module leads, directly or indirectly, to the calling module."""
        edges = {(caller, called) for caller, called in self.entries if caller}
        return tuple((caller, called) for caller, called in sorted(edges) if _leads_to(called, caller, edges))


def trace(function: Callable[[], object]) -> Way:
    """Call ``function``, and return its path through the package. Only the current thread is traced.

    The calling module is the one with the innermost frame of the package. Frames of the SDK, the standard library or
    the app in between are ignored. Make one call before you trace: a first import also runs a module's code.
    """
    entries: list[tuple[str, str]] = []

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event != "call":
            return
        called = _module_of(frame)
        if called is None:
            return
        outer = frame.f_back
        while outer is not None and _module_of(outer) is None:
            outer = outer.f_back
        caller = "" if outer is None else _module_of(outer) or ""
        if caller != called:
            entries.append((caller, called))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        function()
    finally:
        sys.setprofile(before)
    return Way(modules=tuple(dict.fromkeys(called for _, called in entries)), entries=tuple(entries))


def _module_of(frame: FrameType) -> str | None:
    """Return the package module whose code runs in a frame, or None for other code."""
    name = str(frame.f_globals.get("__name__", ""))
    return name if name == PACKAGE or name.startswith(f"{PACKAGE}.") else None


def _leads_to(start: str, end: str, edges: set[tuple[str, str]]) -> bool:
    """Return whether calls lead from one module to another, directly or indirectly."""
    reached, found = set(), {start}
    while found:
        reached |= found
        found = {called for caller, called in edges if caller in found} - reached
    return end in reached


def documented_way(name: str) -> list[str]:
    """Return the modules that ``docs/architecture.rst`` lists below the comment ``name``, without the prefix."""
    page = (ROOT / "docs" / "architecture.rst").read_text()
    table = page.partition(f".. {name}\n")[2].partition("\n====")[2].partition("\n====")[0]
    return re.findall(r"^``([a-z_.]+)``", table, re.MULTILINE)

"""Record which modules of the package a call passes, to test that its way through the package is short.

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
    """The way of one call through the modules of the package."""

    modules: tuple[str, ...]
    """The modules, in the order in which they are first entered."""
    entries: tuple[tuple[str, str], ...]
    """Each call from a module into another: the calling module, empty outside of the package, and the called one."""

    @property
    def entered_again(self) -> tuple[tuple[str, str], ...]:
        """The calls into a module that had been entered before, whether it has returned since or not."""
        seen: set[str] = set()
        again = []
        for caller, called in self.entries:
            if called in seen:
                again.append((caller, called))
            seen.add(called)
        return tuple(again)

    @property
    def upward(self) -> tuple[tuple[str, str], ...]:
        """The calls into a module that the calls of which lead to the calling one: the way turns back there."""
        edges = {(caller, called) for caller, called in self.entries if caller}
        return tuple((caller, called) for caller, called in sorted(edges) if _leads_to(called, caller, edges))


def trace(function: Callable[[], object]) -> Way:
    """Call ``function``, and return its way through the package; only the current thread is watched.

    A module calls another one if that has the innermost frame of the package, whatever frames of the SDK, of the
    standard library or of the app are in between. Warm up first: an import runs the code of a module.
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
    """Return the module of the package whose code runs in a frame; None for any other code."""
    name = str(frame.f_globals.get("__name__", ""))
    return name if name == PACKAGE or name.startswith(f"{PACKAGE}.") else None


def _leads_to(start: str, end: str, edges: set[tuple[str, str]]) -> bool:
    """Tell whether the calls lead from one module to another one."""
    reached, found = set(), {start}
    while found:
        reached |= found
        found = {called for caller, called in edges if caller in found} - reached
    return end in reached


def documented_way(name: str) -> list[str]:
    """Return the modules that ``docs/architecture.rst`` lists below the comment ``name``, without the package."""
    page = (ROOT / "docs" / "architecture.rst").read_text()
    table = page.partition(f".. {name}\n")[2].partition("\n====")[2].partition("\n====")[0]
    return re.findall(r"^``([a-z_.]+)``", table, re.MULTILINE)

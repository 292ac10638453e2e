"""The modules of ``benchmarks/``, which are not in a package."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from tests.support.repository import ROOT


def benchmark_module(name: str) -> Any:
    """Import a module of ``benchmarks/``."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def recorded() -> Any:
    """Return a recording with two tables, a goal that is met, one that is missed, and a peer that is left out."""
    recording = benchmark_module("recording").Recording()
    executed = {"ours": [900.0, 1000.0, 1100.0], "a peer": [480.0, 500.0, 520.0]}
    recording.table("Executed", "tasks/s", executed, ours=["ours"], reference="ours")
    recording.table("Idle", "% of a CPU", {"ours": [0.25]}, ours=["ours"])
    recording.goal("executed, against a peer", 2.0, at_least=2.5, unit="times as many")
    recording.goal("idle", 0.25, at_most=1, unit="%")
    recording.leave_out("another peer", "redis-server is not installed")
    return recording

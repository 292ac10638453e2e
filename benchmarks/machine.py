"""The machine and the versions that a benchmark ran on."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import statistics
import subprocess
import tempfile
import time
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "appengine-python-standard",
    "webob",
    "waitress",
    "google-cloud-tasks",
    "grpcio",
    "protobuf",
    "huey",
    "dramatiq",
    "rq",
    "redis",
)
_SYNCS = 200


def facts() -> dict[str, str]:
    """Return what the report says about this machine."""
    sync_low, sync, sync_high = _sync_microseconds()
    return {
        "Processor": f"{_processor()}, {os.cpu_count()} cores",
        "Memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "System": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "Disk": f"{_file_system()}; 4 KiB written and synced in {sync:.0f} µs ({sync_low:.0f} to {sync_high:.0f})",
        "Load before": " ".join(f"{load:.2f}" for load in os.getloadavg()) + " (1, 5 and 15 minutes)",
        "Python": f"{platform.python_implementation()} {platform.python_version()}, SQLite {sqlite3.sqlite_version}",
        "Packages": ", ".join(_versions()),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system() -> str:
    """Return the type of the file system on which the benchmarks have their files."""
    device = os.stat(tempfile.gettempdir()).st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, kind = line.partition(" - ")
        major, _, minor = fields.split()[2].partition(":")
        if os.makedev(int(major), int(minor)) == device:
            return kind.split()[0]
    return "unknown file system"


def _sync_microseconds() -> list[float]:
    """Return the quartiles of the time to append a page to a file and sync it, as SQLite does for each commit."""
    times = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(_SYNCS):
            began = time.perf_counter()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1e6)
    return statistics.quantiles(times, n=4)


def _versions() -> list[str]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if redis := shutil.which("redis-server"):
        words = subprocess.run([redis, "--version"], capture_output=True, text=True, check=True).stdout.split()
        found.append("Redis server " + next(word[2:] for word in words if word.startswith("v=")))
    return found

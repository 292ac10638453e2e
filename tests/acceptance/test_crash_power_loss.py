"""A power cut at any moment loses no acknowledged task, which a test that kills processes can't show.

A real store works in a process whose writes and syncs are recorded. From the record the test rebuilds a disk as a power
cut at some point may have left it, and opens a store on it. ``powerloss/disk.py`` says what a disk may lose.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.powerloss.disk import SURVIVALS, Disk, read_log
from tests.support.powerloss.promises import Promises
from tests.support.powerloss.workload import NOTES, STORE
from tests.support.repository import ROOT
from tests.support.running import WAIT_SECONDS
from tests.support.shims import compile_shim

CRASH_POINTS = 5000 if os.environ.get("DEFERRED_SOAK") else 500
# Enough crash points to detect a lowered "synchronous".
LOWERED_CRASH_POINTS = 50


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is Linux's")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the recording library."""
    return compile_shim("powerloss/shim.c", tmp_path_factory.mktemp("shim"))


def record(shim: Path, tmp_path: Path, *arguments: str) -> Path:
    """Run the workload in its own process, and return the log of its file operations."""
    directory = tmp_path / "recorded"
    directory.mkdir()
    log = tmp_path / "log"
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LD_PRELOAD": str(shim),
        "POWERLOSS_DIRECTORY": str(directory),
        "POWERLOSS_LOG": str(log),
    }
    command = [sys.executable, "-m", "tests.support.powerloss.workload", str(directory), *arguments]
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=4 * WAIT_SECONDS)
    assert ended.returncode == 0, ended.stderr
    return log


def broken_promises(log: Path, scratch: Path, crash_points: int, seed: int) -> Iterator[str]:
    """Cut the power at ``crash_points`` points, and yield each promise that a resulting store breaks."""
    chance = random.Random(seed)
    events = list(read_log(log))
    # Half of the points are right after an acknowledgement: these promises are the most likely to be broken.
    notes = [index for index, event in enumerate(events) if event.name == NOTES and event.kind == "w"]
    points = [chance.choice(notes) for _ in range(crash_points // 2)]
    points += [chance.randrange(len(events)) for _ in range(crash_points - len(points))]
    points.sort()
    disk = Disk()
    promises = Promises()
    applied = 0
    for number, point in enumerate(points):
        for event in events[applied : point + 1]:
            if event.name != NOTES:
                disk.apply(event)
            elif event.kind == "w":
                promises.note(event.data)
        applied = point + 1
        survival = SURVIVALS[number % len(SURVIVALS)]
        directory = scratch / "found"
        directory.mkdir()
        for name, content in disk.after_power_cut(survival, chance).items():
            (directory / name).write_bytes(content)
        for sentence in promises.broken(directory / STORE):
            yield f"seed {seed}, event {point}, {survival} of what was not synced arrived: {sentence}"
        shutil.rmtree(directory)


def test_a_power_cut_loses_nothing_that_was_acknowledged(
    shim: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a power cut at any point every acknowledged task is there, no finished one runs, and no loss is logged."""
    log = record(shim, tmp_path)
    # The checkpoints, where SQLite copies its log into the database, must be among the tested points.
    assert sum(event.kind == "s" and event.name == STORE for event in read_log(log)) > 2
    seed = random.randrange(1 << 30)

    assert list(broken_promises(log, tmp_path, CRASH_POINTS, seed)) == []
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_lower_synchronous_is_seen(shim: Path, tmp_path: Path) -> None:
    """If the store's commits are not synced, the same test finds lost tasks."""
    log = record(shim, tmp_path, "--lowered")

    broken = list(broken_promises(log, tmp_path, LOWERED_CRASH_POINTS, seed=1))

    assert any("was added, and is gone" in sentence for sentence in broken)
    assert any("was finished, and runs again" in sentence for sentence in broken)

"""A disk for the simulated server: it is slow, full, broken, or loses what was not synced.

The store writes a real SQLite file, and SQLite itself is not simulated. What is: how long the steps of a commit take,
commits that fail, and what a power cut leaves of the log. The log of a run is never copied into the database. So it
only grows, and all of it that was written before the last commit with ``synchronous=FULL`` is certain.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.upkeep.disk_reserve import DiskReserve
from deferred_middleware.server.store.writer import CommitStep, GroupCommit, Operation, PendingOperation

T = TypeVar("T")

STORE = "tasks.sqlite"
_FULL = 2
_SECTOR_BYTES = 512


class SimulatedFuture(Future[T]):
    """A future whose ``result`` lets the simulation go on until it is there."""

    def __init__(self, wait: Callable[[Future[Any]], None]) -> None:
        super().__init__()
        self._wait_for = wait

    def result(self, timeout: float | None = None) -> T:
        """Return the result."""
        self._wait_for(self)
        return super().result(0)


class SimulatedWriter(GroupCommit):
    """Commits when the simulation says, one step at a time."""

    def __init__(self, *parts: Any, path: Path, wait: Callable[[Future[Any]], None], **more: Any) -> None:
        super().__init__(*parts, **more)
        self._log = path.with_name(path.name + "-wal")
        self._wait = wait
        self._delayable: list[PendingOperation] = []
        self._pending: list[PendingOperation] = []
        self._steps: Iterator[CommitStep] | None = None
        self._step: CommitStep | None = None
        self._is_closed = False
        self.wake: Callable[[float], None] = lambda _delay: None
        # What a power cut can't undo.
        self.certain_bytes = self._log.stat().st_size if self._log.exists() else 0

    def submit(
        self, operation: Operation[T], *, durable: bool = True, delayable: bool = False, adds_tasks: bool = False
    ) -> Future[T]:
        """Submit an operation."""
        if adds_tasks and not self._reserve.ensure_allocated():
            raise self._reserve.full_error
        self.check()
        future: SimulatedFuture[T] = SimulatedFuture(self._wait)
        pending = PendingOperation(operation=operation, durable=durable, adds_tasks=adds_tasks, future=future)
        (self._delayable if delayable else self._pending).append(pending)
        if self._steps is None:
            self.wake(0.005 if delayable else 0.0)
        return future

    def check(self) -> None:
        """Raise an error if it is closed."""
        if self._is_closed:
            raise ServerError("The task store is closed.")

    def close(self) -> None:
        """Forget everything, as a process that is killed."""
        self._is_closed = True
        if self._steps is not None:
            self._steps.close()  # type: ignore[attr-defined] # it is a generator
        self._connection.close()

    def checkpoint(self) -> None:
        """Do nothing: the log only grows."""

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to write."""
        return self._steps is None and not self._pending and not self._delayable

    def proceed(self, error: sqlite3.Error | None) -> CommitStep | None:
        """Do the next step; return where the commit stands, None after its end. With ``error``, COMMIT fails."""
        if self._steps is None:
            if self.is_idle:
                return None
            delayed, self._delayable = self._delayable, []
            batch, self._pending = self._pending, []
            self._steps = self.commit_steps(delayed, batch)
        failing = error if self._step == "ran" else None
        try:
            step = self._steps.throw(failing) if failing is not None else next(self._steps)  # type: ignore[attr-defined]
        except StopIteration:
            step = None
            self._steps = None
        self._step = step
        if step == "committed" and self._connection.execute("PRAGMA synchronous").fetchone() == (_FULL,):
            self.certain_bytes = self._log.stat().st_size
        return step


class SimulatedReserve:
    """While ``is_full`` returns true, a :class:`DiskReserve` can't have its space."""

    def __init__(self, is_full: Callable[[], bool]) -> None:
        self._is_full = is_full
        self._allocate = DiskReserve._allocate

    def allocate(self, reserve: DiskReserve) -> bool:
        """Allocate the space of a reserve."""
        return not self._is_full() and self._allocate(reserve)


def copy_after_kill(directory: Path, target: Path) -> None:
    """Copy the files as a killed process leaves them."""
    target.mkdir()
    for path in directory.iterdir():
        if not path.name.endswith(("-shm", ".lock", ".reserve")):
            shutil.copyfile(path, target / path.name)


def copy_after_power_cut(directory: Path, target: Path, certain_bytes: int, chance: random.Random) -> None:
    """Copy the files as a power cut may leave them: what was not synced is lost, cut off or torn."""
    copy_after_kill(directory, target)
    log = target / f"{STORE}-wal"
    if log.exists():
        content = bytearray(log.read_bytes())
        del content[chance.randint(min(certain_bytes, len(content)), len(content)) :]
        for start in range(certain_bytes, len(content), _SECTOR_BYTES):
            if chance.random() < 0.3:
                end = min(start + _SECTOR_BYTES, len(content))
                content[start:end] = bytes(end - start)
        log.write_bytes(content)
    claimed = target / f"{STORE}.claimed"
    if claimed.exists() and chance.random() < 0.5:
        claimed.write_bytes(b"")

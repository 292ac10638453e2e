"""Gives the space of deleted tasks back to the disk, in the background.

SQLite keeps the pages of deleted rows in the file. In its mode ``auto_vacuum=INCREMENTAL``, a statement frees a number
of them. A thread does so in small steps with pauses, so that adds and results never wait long. It begins when many rows
were deleted, and sleeps otherwise.

Source: https://www.sqlite.org/pragma.html#pragma_auto_vacuum
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deferred_middleware.errors import ServerError

logger: Final = logging.getLogger(__name__)

_INCREMENTAL = 2
STEP_PAGES = 256
_PAUSE_SECONDS = 0.02
# So many free pages stay for new tasks: 4 MB.
KEPT_PAGES = 1024


def use_incremental(connection: sqlite3.Connection, path: Path) -> None:
    """Let the file ``path`` shrink in steps. An older file is written anew for this, in one transaction.

    That needs as much space as the file and its log. If the disk has less, the file stays as it is until a later start.
    """
    if connection.execute("PRAGMA auto_vacuum").fetchone() == (_INCREMENTAL,):
        return
    size = path.stat().st_size
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    if not size:
        return
    if shutil.disk_usage(path.parent).free < 3 * size:
        logger.warning("The disk of %s has no space to convert the task store, so it can't shrink.", path.parent)
        return
    logger.info("Converting the task store (%d MB), so that it can shrink.", size // 1_000_000)
    connection.execute("VACUUM")


def free_pages(connection: sqlite3.Connection) -> int:
    """Return how many pages can be given back, beyond those that are kept for new tasks."""
    if connection.execute("PRAGMA auto_vacuum").fetchone() != (_INCREMENTAL,):
        return 0
    return max(0, int(connection.execute("PRAGMA freelist_count").fetchone()[0]) - KEPT_PAGES)


class Shrinker:
    """A thread that shrinks the file.

    ``run_step`` frees at most :data:`STEP_PAGES` pages, and returns how many more there are. ``finish`` is called when
    there are no more.
    """

    def __init__(self, run_step: Callable[[], int], finish: Callable[[], object]) -> None:
        self._run_step = run_step
        self._finish = finish
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store-shrinker", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look whether there are pages to free. Returns at once."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread after its current step."""
        self._closing.set()
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while self._wanted.wait() and not self._closing.is_set():
            self._wanted.clear()
            try:
                if not self._run_step():
                    continue
                while self._run_step():
                    if self._closing.wait(_PAUSE_SECONDS):
                        return
                self._finish()
            except (sqlite3.Error, ServerError) as error:
                logger.warning("The task store could not be shrunk: %s. This is tried again after a deletion.", error)


def free_some(connection: sqlite3.Connection) -> int:
    """Free pages inside a transaction; return how many more there are."""
    left = free_pages(connection)
    if left:
        # One page at a time: SQLite returns a row without columns after each page, and sqlite3 doesn't go on after it.
        for _ in range(min(left, STEP_PAGES)):
            connection.execute("PRAGMA incremental_vacuum(1)")
    return left

"""The log of changes: who did what, when, and from where (page, command or API).

It is a file in the data directory, one JSON object for each change, the oldest first. When the file has
:data:`MAX_BYTES`, it replaces ``changes.jsonl.1``, and a new one begins. Only the user of the server can read it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from deferred_middleware.errors.text import printable

CHANGES_FILE = "changes.jsonl"
"""Name of the file in the data directory."""

COMMAND_USER_AGENT = "deferred-middleware"
"""How the commands name themselves to the JSON API. The name of the user follows, in parentheses."""

MAX_BYTES = 1024 * 1024
_KEPT = 1000
_MAX_WHO_CHARACTERS = 100

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who asks for a change: ``via`` is the way, and ``who`` a user or an address, as far as it is known."""

    via: Literal["page", "command", "API"]
    who: str


class ChangeLog:
    """The changes of this data directory. Any thread may use it. Without a ``path``, they are kept in memory."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        # Guards the list and the file.
        self._lock = threading.Lock()
        self._changes: deque[dict[str, Any]] = deque(self._read(), maxlen=_KEPT)

    def add(self, actor: Actor, action: str, subject: str, answer: Mapping[str, Any]) -> None:
        """Write a change that was made. If the file can't be written, the change is only logged."""
        change = {
            "time_usec": time.time_ns() // 1000,
            "via": actor.via,
            "who": printable(actor.who)[:_MAX_WHO_CHARACTERS],
            "action": action,
            "subject": subject,
            "answer": dict(answer),
        }
        logger.info("%s: %s (%s, %s)", action, subject, actor.via, change["who"])
        with self._lock:
            self._changes.append(change)
            try:
                self._write(json.dumps(change).encode() + b"\n")
            except OSError as error:
                logger.warning("The log of changes can't be written, so this is its only line: %s (%s)", change, error)

    def newest(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the last changes, the newest first."""
        with self._lock:
            return list(self._changes)[: -limit - 1 : -1]

    def _write(self, line: bytes) -> None:
        if self._path is None:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, line)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        if size >= MAX_BYTES:
            os.replace(self._path, _older(self._path))

    def _read(self) -> list[dict[str, Any]]:
        if self._path is None:
            return []
        lines: list[bytes] = []
        for path in (_older(self._path), self._path):
            try:
                lines += path.read_bytes().splitlines()
            except FileNotFoundError:
                continue
            except OSError as error:
                logger.warning("The log of changes can't be read: %s", error)
        return [change for line in lines[-_KEPT:] if (change := _parsed(line)) is not None]


def _older(path: Path) -> Path:
    return path.with_name(path.name + ".1")


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the change in a line; None for a line that a crash has cut off."""
    try:
        change = json.loads(line)
    except ValueError:
        return None
    wanted = {"time_usec", "via", "who", "action", "subject", "answer"}
    return change if isinstance(change, dict) and wanted <= change.keys() else None

"""``cron.yaml``: its entries with their next times, and a run of one of them.

The local server doesn't run the entries by itself, as the platform's own development server didn't.
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from deferred_middleware.errors import DeferredError, ServerError
from deferred_middleware.server.admin.change_log import Actor
from deferred_middleware.server.admin.operation_errors import OperationError, conflict
from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.config.cron_schedule import next_times
from deferred_middleware.server.config.cron_yaml import CronEntry, CronYamlError, find_cron_yaml, read_cron_yaml

_SHOWN_TIMES = 3
_PATIENCE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class CronAnswer:
    """How a run ended. ``status`` is None if there was no response; ``text`` then says why."""

    status: int | None
    seconds: float
    text: str


SendCron = Callable[[str, str], CronAnswer]
"""Sends a request with the platform's header to a target and a URL. Raises an error if nothing is served there."""


class CronReports:
    """``directories`` are where the file may be. ``send`` sends the request of an entry."""

    def __init__(
        self, operations: Operations, *, directories: tuple[Path, ...] = (), send: SendCron | None = None
    ) -> None:
        self._operations = operations
        self._directories = directories
        self._send = send
        # Guards the runs, by URL and target: when each began, and its answer.
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], tuple[int, Future[CronAnswer]]] = {}

    def show(self) -> dict[str, Any]:
        """Return the entries, each with its next times and its last run."""
        path = find_cron_yaml(self._directories)
        shown: dict[str, Any] = {"path": None if path is None else str(path), "error": None, "entries": []}
        try:
            entries = [] if path is None else read_cron_yaml(path)
        except CronYamlError as error:
            return {**shown, "error": {"line": error.line, "message": str(error)}}
        return {**shown, "entries": [self._shown(entry) for entry in entries]}

    def run(self, actor: Actor, number: str, url: str | None = None) -> dict[str, Any]:
        """Run an entry, given by its number from 0 on; with ``url``, only if the entry still has that URL."""
        entry = self._entry(number)
        if url is not None and entry.url != url:
            raise conflict(
                "file-changed",
                f"cron.yaml has changed: entry {number} is {entry.url} now, not {url}. Load the page again.",
            )

        def change() -> dict[str, Any]:
            run = self._start(entry)
            started = {"entry": entry.number, "url": entry.url, "status": None, "running": True, "text": ""}
            try:
                answer = run.result(_PATIENCE_SECONDS)
            except FutureTimeoutError:
                return started
            except (DeferredError, ServerError, OSError) as error:
                problem = f"{entry.url} was not run: {error}"
                raise OperationError(HTTPStatus.BAD_GATEWAY, "not-served", problem) from error
            return {**started, "status": answer.status, "running": False, "text": answer.text}

        return self._operations.change(actor, "run-cron", f"cron {entry.url}", change)

    def _entry(self, number: str) -> CronEntry:
        path = find_cron_yaml(self._directories)
        try:
            entries = [] if path is None else read_cron_yaml(path)
        except CronYamlError as error:
            raise OperationError(HTTPStatus.CONFLICT, "wrong-file", str(error)) from error
        if number.isascii() and number.isdecimal() and len(number) < 9 and int(number) < len(entries):
            return entries[int(number)]
        raise OperationError(HTTPStatus.NOT_FOUND, "no-such-entry", f"cron.yaml has no entry {number[:40]!r}.")

    def _start(self, entry: CronEntry) -> Future[CronAnswer]:
        send = self._send
        if send is None:
            raise OperationError(HTTPStatus.CONFLICT, "not-served", "No service is served here.")
        key = (entry.url, entry.target)
        future: Future[CronAnswer] = Future()
        with self._lock:
            running = self._runs.get(key)
            if running is not None and not running[1].done():
                raise conflict("already-running", f"{entry.url} is still running.")
            self._runs[key] = (int(datetime.datetime.now().timestamp() * 1e6), future)

        def run() -> None:
            try:
                future.set_result(send(entry.target, entry.url))
            except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
                future.set_exception(error)

        threading.Thread(target=run, name="cron", daemon=True).start()
        return future

    def _shown(self, entry: CronEntry) -> dict[str, Any]:
        now = datetime.datetime.now(datetime.timezone.utc)
        times = [] if entry.schedule is None else next_times(entry.schedule, now, _SHOWN_TIMES)
        # A schedule that counts from the end of the last run has no times of its own.
        floats = entry.schedule is not None and getattr(entry.schedule, "start", now) is None
        return {
            "number": entry.number,
            "line": entry.line,
            "url": entry.url,
            "schedule": entry.text,
            "timezone": entry.timezone,
            "description": entry.description,
            "target": entry.target,
            "problem": entry.problem,
            "after_last_run": floats,
            "next_usec": [int(time.timestamp() * 1e6) for time in times],
            "last_run": self._last_run(entry),
        }

    def _last_run(self, entry: CronEntry) -> dict[str, Any] | None:
        with self._lock:
            found = self._runs.get((entry.url, entry.target))
        if found is None:
            return None
        began_usec, future = found
        if not future.done():
            return {"began_usec": began_usec, "running": True, "status": None, "text": "", "seconds": None}
        error = future.exception()
        if error is not None:
            return {"began_usec": began_usec, "running": False, "status": None, "text": str(error), "seconds": None}
        answer = future.result()
        return {
            "began_usec": began_usec,
            "running": False,
            "status": answer.status,
            "text": answer.text,
            "seconds": answer.seconds,
        }

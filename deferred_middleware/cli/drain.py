"""``deferred-middleware drain``: wait until the queues have run everything that is due."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from deferred_middleware.cli.client import Connection, NotFoundError, add_arguments
from deferred_middleware.cli.output import count, distance, print_json, say

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers

FAILED_MEANWHILE = 5
"""Exit status: the queues are empty, and tasks have failed for good meanwhile."""
TIMED_OUT = 6
"""Exit status: there was still something to do after ``--timeout``."""

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 0.5
# Where progress isn't shown on a terminal, a line of it is written no more often than this.
_LINE_EVERY_SECONDS = 5.0
# The server counts no further than this.
_MOST_COUNTED = 10_000


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "drain",
        help="wait until everything due is done",
        description="Let the queues run everything that is due, show what is left, and end when nothing is: no task "
        "due, running, or waiting to be tried again. Paused queues are left alone, and pull queues.",
    )
    parser.add_argument("queues", nargs="*", metavar="QUEUE", help="only this one (default: all)")
    parser.add_argument(
        "--include-scheduled", action="store_true", help="run tasks with a later ETA too, without waiting for it"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after so long, with status 6")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Drain the queues; return the exit status."""
    connection = Connection(arguments)
    progress = _Progress()
    began = time.monotonic()
    pause_seconds = _FIRST_PAUSE_SECONDS
    failed_before: dict[str, int] | None = None
    empty_before = False
    while True:
        queues, left_alone = _queues(connection, arguments.queues)
        failed = {queue["name"]: queue["failed"] for queue in queues}
        if failed_before is None:
            failed_before = failed
        failures = sum(max(0, number - failed_before.get(name, 0)) for name, number in failed.items())
        if arguments.include_scheduled:
            for queue in queues:
                if queue["scheduled"]:
                    connection.post("queues", queue["name"], "run-scheduled")
        empty = not any(_left(queue, scheduled=arguments.include_scheduled) for queue in queues)
        # Twice, because the server counts one thing after the other, and a task may have gone from one to another.
        if empty and empty_before:
            break
        empty_before = empty
        if arguments.timeout is not None and time.monotonic() - began > arguments.timeout:
            progress.end()
            return _end(arguments, queues, left_alone, failures, timed_out=True)
        progress.show(queues, failures)
        time.sleep(_FIRST_PAUSE_SECONDS if empty else pause_seconds)
        pause_seconds = min(_LONGEST_PAUSE_SECONDS, pause_seconds * 1.5)
    progress.end()
    return _end(arguments, queues, left_alone, failures, timed_out=False)


def _queues(connection: Connection, names: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the queues to drain, and the names of those that don't run their tasks."""
    queues = connection.get("queues")["queues"]
    for name in names:
        if name not in [queue["name"] for queue in queues]:
            raise NotFoundError(f"There is no queue {name!r}.")
    chosen = [queue for queue in queues if not names or queue["name"] in names]
    push = [queue for queue in chosen if (queue["config"] or {}).get("mode") != "pull"]
    left_alone = [queue["name"] for queue in push if _stands_still(queue)]
    return [queue for queue in push if not _stands_still(queue)], left_alone


def _stands_still(queue: dict[str, Any]) -> bool:
    return bool(queue["paused"] or (queue["config"] or {}).get("rate_per_second") == 0)


def _left(queue: dict[str, Any], *, scheduled: bool) -> bool:
    if queue["due"] or queue["retrying"] or queue["running"]:
        return True
    # What is ready was counted together with what runs, and the rest after it: what is in neither was not missed.
    others = 0 if scheduled else queue["scheduled"]
    return bool(queue["ready"] > others and others < _MOST_COUNTED)


def _end(
    arguments: argparse.Namespace,
    queues: list[dict[str, Any]],
    left_alone: list[str],
    failures: int,
    *,
    timed_out: bool,
) -> int:
    scheduled = sum(queue["scheduled"] for queue in queues)
    if arguments.json:
        print_json(
            {
                "drained": not timed_out,
                "failed_meanwhile": failures,
                "scheduled": scheduled,
                "left_alone": left_alone,
                "queues": queues,
            }
        )
    else:
        say(f"Still at it after {arguments.timeout:g} s: {_state(queues)}." if timed_out else "Everything due is done.")
        if scheduled and not timed_out:
            say(f"{count(scheduled, 'task')} with a later ETA left; --include-scheduled runs those too.")
        for name in left_alone:
            say(f"Queue {name} is paused, or has the rate 0, and was left alone.")
        if failures:
            say(f"{count(failures, 'task')} failed for good meanwhile: deferred-middleware tasks --state failed")
    return TIMED_OUT if timed_out else FAILED_MEANWHILE if failures else 0


def _state(queues: list[dict[str, Any]]) -> str:
    total = {key: sum(queue[key] for queue in queues) for key in ("due", "running", "retrying")}
    text = f"{total['due']:,} due, {total['running']:,} running"
    if total["retrying"]:
        etas = [queue["next_eta_usec"] for queue in queues if queue["retrying"] and queue["next_eta_usec"]]
        text += f", {total['retrying']:,} to be tried again"
        text += f" (next {distance(min(etas))})" if etas else ""
    return text


class _Progress:
    """Shows what is left: one line that changes on a terminal, lines now and then elsewhere; on standard error."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._width = 0
        self._shown = ""
        self._next_line = 0.0

    def show(self, queues: list[dict[str, Any]], failures: int) -> None:
        text = _state(queues) + (f", {failures:,} failed for good" if failures else "")
        if self._terminal:
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
        elif text != self._shown and time.monotonic() >= self._next_line:
            sys.stderr.write(text + "\n")
            self._next_line = time.monotonic() + _LINE_EVERY_SECONDS
        self._shown = text

    def end(self) -> None:
        if self._terminal and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()

"""``deferred-middleware drain``: wait until the queues have run everything that is due."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from deferred_middleware.cli.client import MOST_COUNTED, AdminClient, NotFoundError, add_client_arguments
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.output import count, print_error, print_json, print_line, relative_time
from deferred_middleware.errors.text import printable

FAILED_MEANWHILE = 5
"""Exit status: the queues are drained, and tasks failed for good meanwhile."""
TIMED_OUT = 6
"""Exit status: tasks were left after ``--timeout``."""

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 0.5
# Where standard error is no terminal, a line of progress is written at most this often.
_SECONDS_PER_LINE = 5.0


def drain_queues(arguments: argparse.Namespace) -> int:
    """Wait until the queues are drained; return the exit status."""
    client = AdminClient(arguments)
    progress = _Progress()
    start = time.monotonic()
    pause_seconds = _FIRST_PAUSE_SECONDS
    failed_before: dict[str, int] | None = None
    was_empty = False
    while True:
        queues, skipped = _get_queues(client, arguments.queues)
        failed = {queue["name"]: queue["failed"] for queue in queues}
        if failed_before is None:
            failed_before = failed
        failures = sum(max(0, number - failed_before.get(name, 0)) for name, number in failed.items())
        if arguments.include_scheduled:
            for queue in queues:
                if queue["scheduled"]:
                    client.post("queues", queue["name"], "run-scheduled")
        is_empty = not any(_has_work(queue, include_scheduled=arguments.include_scheduled) for queue in queues)
        # The server counts one number after the other, and a task may change its state in between. So the queues
        # have to be empty twice in a row.
        if is_empty and was_empty:
            break
        was_empty = is_empty
        if arguments.timeout is not None and time.monotonic() - start > arguments.timeout:
            progress.clear()
            return _report(arguments, queues, skipped, failures, timed_out=True)
        progress.show(queues, failures)
        time.sleep(_FIRST_PAUSE_SECONDS if is_empty else pause_seconds)
        pause_seconds = min(_LONGEST_PAUSE_SECONDS, pause_seconds * 1.5)
    progress.clear()
    return _report(arguments, queues, skipped, failures, timed_out=False)


def _get_queues(client: AdminClient, names: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the queues to drain, and the names of the queues to skip because they start no tasks."""
    queues = client.get("queues")["queues"]
    for name in names:
        if name not in [queue["name"] for queue in queues]:
            raise NotFoundError(f"There is no queue {name!r}.")
    chosen = [queue for queue in queues if not names or queue["name"] in names]
    push = [queue for queue in chosen if (queue["config"] or {}).get("mode") != "pull"]
    skipped = [queue["name"] for queue in push if _is_stopped(queue)]
    return [queue for queue in push if not _is_stopped(queue)], skipped


def _is_stopped(queue: dict[str, Any]) -> bool:
    return bool(queue["paused"] or (queue["config"] or {}).get("rate_per_second") == 0)


def _has_work(queue: dict[str, Any], *, include_scheduled: bool) -> bool:
    if queue["due"] or queue["retrying"] or queue["running"]:
        return True
    # A task that starts between two of the server's counts may be in neither "due" nor "running". It is in "ready",
    # which the server counts together with "running", and before the others.
    others = 0 if include_scheduled else queue["scheduled"]
    return bool(queue["ready"] > others and others < MOST_COUNTED)


def _report(
    arguments: argparse.Namespace,
    queues: list[dict[str, Any]],
    skipped: list[str],
    failures: int,
    *,
    timed_out: bool,
) -> int:
    """Print the result; return the exit status."""
    scheduled = sum(queue["scheduled"] for queue in queues)
    if arguments.json:
        print_json(
            {
                "drained": not timed_out,
                "failed_meanwhile": failures,
                "scheduled": scheduled,
                "left_alone": skipped,
                "queues": queues,
            }
        )
    else:
        if timed_out:
            print_line(f"Timed out after {arguments.timeout:g} s: {_remaining_work(queues)}.")
        else:
            print_line("Everything due is done.")
        if scheduled and not timed_out:
            print_line(f"{count(scheduled, 'task')} with a later ETA left; --include-scheduled runs those too.")
        for name in skipped:
            print_line(f"Queue {name} was skipped: it is paused or has the rate 0.")
        if failures:
            print_line(f"{count(failures, 'task')} failed for good meanwhile: deferred-middleware tasks --state failed")
    return TIMED_OUT if timed_out else FAILED_MEANWHILE if failures else 0


def _remaining_work(queues: list[dict[str, Any]]) -> str:
    total = {key: sum(queue[key] for queue in queues) for key in ("due", "running", "retrying")}
    text = f"{total['due']:,} due, {total['running']:,} running"
    if total["retrying"]:
        etas = [queue["next_eta_usec"] for queue in queues if queue["retrying"] and queue["next_eta_usec"]]
        text += f", {total['retrying']:,} to be tried again"
        text += f" (next {relative_time(min(etas))})" if etas else ""
    return text


class _Progress:
    """Shows the remaining work on standard error: on a terminal in one line that changes, elsewhere in new lines."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._width = 0
        self._shown = ""
        self._next_line = 0.0

    def show(self, queues: list[dict[str, Any]], failures: int) -> None:
        text = _remaining_work(queues) + (f", {failures:,} failed for good" if failures else "")
        if self._terminal:
            sys.stderr.write("\r" + printable(text).ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)
        elif text != self._shown and time.monotonic() >= self._next_line:
            print_error(text)
            self._next_line = time.monotonic() + _SECONDS_PER_LINE
        self._shown = text

    def clear(self) -> None:
        if self._terminal and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()


def _add_drain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queues", nargs="*", metavar="QUEUE", help="only this queue; may be several (default: all)")
    parser.add_argument(
        "--include-scheduled", action="store_true", help="run tasks with a later ETA too, without waiting for it"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help=f"give up after this time, with exit status {TIMED_OUT}"
    )
    add_client_arguments(parser)


COMMANDS = (
    Command(
        name="drain",
        summary="wait until everything due is done",
        description="Wait until no task is due, running, or waiting to be tried again, and show meanwhile what is "
        f"left. Paused queues, queues with the rate 0 and pull queues are skipped. The exit status is "
        f"{FAILED_MEANWHILE} if tasks failed for good meanwhile.",
        examples=(
            "deferred-middleware drain --timeout 60",
            "deferred-middleware drain --include-scheduled default",
        ),
        add_arguments=_add_drain_arguments,
        run=drain_queues,
    ),
)

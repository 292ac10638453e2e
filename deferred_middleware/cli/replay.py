"""``deferred-middleware replay``: enqueue dead letters again, from the lines that the log has of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deferred_middleware.cli.engine import connect
from deferred_middleware.errors import ServerError

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "replay",
        help="enqueue dead letters again, from the log's lines",
        description="Read lines of the log that tell of dead letters and enqueue each task again, after verifying its "
        "signature with DEFERRED_SECRET_KEYS. It is enqueued where the environment says: on Cloud Tasks with "
        "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE=true, on the local server with the variables that `serve` prints for an "
        "app that runs elsewhere. Inside an app, call deferred_middleware.execution.dead_letters.replay().",
    )
    parser.add_argument("file", metavar="FILE", help="a file of lines, or - for standard input")
    parser.add_argument("--queue", metavar="NAME", help="another queue than the task was in")
    parser.add_argument("--target", help="where the tasks run; by default in the service that they ran in")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Enqueue each dead letter; return 1 if one could not be. Raises :class:`ServerError` when nothing can be read."""
    from google.appengine.api.taskqueue import taskqueue
    from google.appengine.runtime import apiproxy_errors

    from deferred_middleware.execution.dead_letters import MARK, ReplayError, replay

    try:
        text = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text()
    except OSError as error:
        raise ServerError(f"{arguments.file} can't be read: {error.strerror}.") from error
    lines = [line for line in text.splitlines() if MARK in line or line.lstrip().startswith("{")]
    if not lines:
        raise ServerError(f"{arguments.file} has no line of a dead letter ({MARK}…).")
    connect()
    failed = 0
    for number, line in enumerate(lines, 1):
        try:
            task = replay(line, queue=arguments.queue, target=arguments.target)
        except (ReplayError, taskqueue.Error, apiproxy_errors.Error, AssertionError) as error:
            failed += 1
            sys.stderr.write(f"dead letter {number}: not enqueued: {error or type(error).__name__}\n")
        else:
            print(f"dead letter {number}: enqueued as {task.name} in queue {task.queue_name}")
    return 1 if failed else 0

"""``deferred-middleware retry``: try dead letters again, those that are named or all of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deferred_middleware.cli.client import Connection, UsageError, add_arguments
from deferred_middleware.cli.named import add_task_arguments, change_named
from deferred_middleware.cli.output import count, print_json, say

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "retry",
        help="try failed tasks again",
        description="Try tasks that have failed for good again, at once, as if they were new.",
    )
    add_task_arguments(parser, optional=True)
    parser.add_argument("--all", action="store_true", help="all that have failed, in --queue or in every queue")
    parser.add_argument("--queue", metavar="NAME", help="with --all: only those of this queue")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Retry the tasks; return the exit status."""
    if bool(arguments.tasks) == arguments.all:
        raise UsageError("Name the tasks to retry, or say --all.")
    if arguments.queue and not arguments.all:
        raise UsageError("--queue goes with --all.")
    connection = Connection(arguments)
    if arguments.all:
        answer = connection.post("queues", arguments.queue, "retry") if arguments.queue else connection.post("retry")
        if arguments.json:
            print_json(answer)
        else:
            say(f"{count(answer['retried'], 'failed task')} will be tried again.")
        return 0
    return change_named(arguments, connection, "retry", "will be tried again")

"""``deferred-middleware delete``: delete tasks, those that are named or all dead letters of a queue."""

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
        "delete",
        help="delete tasks",
        description="Delete tasks, whatever their state, with their attempts. One that is running runs to its end. "
        "A name that the app chose stays blocked; see forget.",
    )
    add_task_arguments(parser, optional=True)
    parser.add_argument("--failed", metavar="QUEUE", help="instead, all tasks of this queue that have failed for good")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Delete the tasks; return the exit status."""
    if bool(arguments.tasks) == bool(arguments.failed):
        raise UsageError("Name the tasks to delete, or say --failed QUEUE.")
    connection = Connection(arguments)
    if arguments.failed:
        answer = connection.post("queues", arguments.failed, "delete-failed")
        if arguments.json:
            print_json(answer)
        else:
            say(f"{count(answer['deleted'], 'failed task')} deleted.")
        return 0
    return change_named(arguments, connection, "delete", "is deleted")

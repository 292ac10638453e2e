"""``deferred-middleware purge``: delete all tasks of a queue that are not finished."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deferred_middleware.cli.client import Connection, add_arguments
from deferred_middleware.cli.output import count, print_json, say

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "purge",
        help="delete all waiting tasks of a queue",
        description="Delete all tasks of a queue that are not finished. Those that are running run to their end; "
        "those that succeeded or failed stay to be seen.",
    )
    parser.add_argument("queue", metavar="QUEUE")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Purge the queue; return the exit status."""
    answer = Connection(arguments).post("queues", arguments.queue, "purge")
    if arguments.json:
        print_json(answer)
    else:
        say(f"{count(answer['deleted'], 'task')} of queue {answer['queue']} deleted.")
    return 0

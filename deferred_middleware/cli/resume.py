"""``deferred-middleware resume``: let the tasks of a paused queue run again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deferred_middleware.cli.client import Connection, add_arguments
from deferred_middleware.cli.output import print_json, say

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "resume", help="resume a paused queue", description="Let the tasks of a paused queue run again."
    )
    parser.add_argument("queue", metavar="QUEUE")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Resume the queue; return the exit status."""
    answer = Connection(arguments).post("queues", arguments.queue, "resume")
    if arguments.json:
        print_json(answer)
    else:
        say(f"Queue {answer['queue']} {'runs again' if answer['changed'] else 'was not paused'}.")
    return 0

"""``deferred-middleware pause``: let no task of a queue run until it is resumed."""

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
        "pause",
        help="pause a queue",
        description="Let no task of a queue run until it is resumed, also after a restart of the server. Those that "
        "are running run to their end, and tasks may be added.",
    )
    parser.add_argument("queue", metavar="QUEUE")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Pause the queue; return the exit status."""
    answer = Connection(arguments).post("queues", arguments.queue, "pause")
    if arguments.json:
        print_json(answer)
    else:
        say(f"Queue {answer['queue']} is paused{'' if answer['changed'] else ' already'}.")
    return 0

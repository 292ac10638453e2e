"""``deferred-middleware forget``: let names of former tasks be used again before their time."""

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
        "forget",
        help="let used task names be used again",
        description="Let names be used again that the app gave to tasks which are over; they stay blocked for days "
        "otherwise. The tasks themselves stay to be seen.",
    )
    parser.add_argument("queue", metavar="QUEUE")
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this one")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Forget the names; return the exit status."""
    content = None if arguments.name is None else {"name": arguments.name}
    answer = Connection(arguments).post("queues", arguments.queue, "forget", content=content)
    if arguments.json:
        print_json(answer)
    else:
        say(f"{count(answer['forgotten'], 'name')} of queue {answer['queue']} can be used again.")
    return 0

"""``deferred-middleware queues``: which queues there are, and how many tasks are in them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deferred_middleware.cli.client import Connection, add_arguments
from deferred_middleware.cli.output import distance, print_json, print_table

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers

_MOST_COUNTED = 10_000
_NUMBERS = ("DUE", "SCHEDULED", "RETRYING", "RUNNING", "SUCCEEDED", "FAILED")


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "queues",
        help="show the queues",
        description="Show the queues, and how many tasks are due, wait for their ETA or for another attempt, run, and "
        "have succeeded or failed for good.",
    )
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the queues; return the exit status."""
    answer = Connection(arguments).get("queues")
    if arguments.json:
        print_json(answer)
        return 0
    rows = []
    for queue in answer["queues"]:
        numbers = [
            f"{queue[key]:,}{'+' if key in ('due', 'scheduled') and queue[key] >= _MOST_COUNTED else ''}"
            for key in (name.lower() for name in _NUMBERS)
        ]
        state = "paused" if queue["paused"] else "" if queue["configured"] else "not configured"
        rows.append([queue["name"], *numbers, distance(queue["next_eta_usec"]), state])
    print_table(["QUEUE", *_NUMBERS, "NEXT", "STATE"], rows, right=_NUMBERS)
    return 0

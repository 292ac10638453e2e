"""``deferred-middleware run``: have tasks run now that would run later."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deferred_middleware.cli.client import Connection, add_arguments
from deferred_middleware.cli.named import add_task_arguments, change_named

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "run",
        help="run tasks now",
        description="Have tasks that wait run now, whatever their ETA, back-off, and their queue's rate and pause.",
    )
    add_task_arguments(parser, optional=False)
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Have the tasks run; return the exit status."""
    connection = Connection(arguments)
    return change_named(arguments, connection, "run", "runs as soon as its service can take it")

"""``deferred-middleware tasks``: the tasks of the local server, the newest first."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from deferred_middleware.cli.client import Connection, add_arguments
from deferred_middleware.cli.output import distance, of_task, print_json, print_table, say

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers

STATES = ("ready", "running", "succeeded", "failed")
_MAX_PAGE = 1000


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "tasks", help="list tasks", description="List tasks, those that were added last first."
    )
    parser.add_argument("--queue", metavar="NAME", help="only those of this queue")
    parser.add_argument("--state", choices=STATES, help="only those in this state; failed is for good")
    parser.add_argument(
        "--function", metavar="TEXT", help="only those whose URL has this in it: mail/send_welcome, or send_welcome"
    )
    parser.add_argument("--limit", type=_positive, default=50, metavar="N", help="no more than so many (default: 50)")
    parser.add_argument("--before", type=_positive, metavar="ID", help="only those that were added before task ID")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print the tasks; return the exit status."""
    connection = Connection(arguments)
    found: list[dict[str, Any]] = []
    before = arguments.before
    while True:
        answer = connection.get(
            "tasks",
            queue=arguments.queue,
            state=arguments.state,
            function=arguments.function,
            before=before,
            limit=min(_MAX_PAGE, arguments.limit - len(found)),
        )
        found += answer["tasks"]
        before = answer["next_before"]
        # Where there are many tasks, a page may have none of a function's and still not be the last.
        if before is None or len(found) >= arguments.limit:
            break
    if arguments.json:
        print_json({"tasks": found, "next_before": before})
        return 0
    if not found:
        say("There are no such tasks.")
        return 0
    print_table(
        ["ID", "QUEUE", "STATE", "TRIES", "LAST", "WHEN", "NAME", "FUNCTION"],
        [_row(task) for task in found],
        right=("ID", "TRIES", "LAST"),
    )
    if before is not None:
        say(f"There are more: --before {before} shows the next ones.")
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _row(task: dict[str, Any]) -> list[object]:
    when = task["finished_usec"] or task["eta_usec"]
    if task["state"] == "running":
        when = None
    last = task["previous_response"]
    shown = "" if last is None else "none" if last == 0 else last
    return [
        task["id"],
        task["queue"],
        task["state"],
        task["retry_count"],
        shown,
        distance(when),
        task["name"],
        of_task(task),
    ]

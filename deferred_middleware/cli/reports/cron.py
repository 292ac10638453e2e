"""The command ``cron``."""

from __future__ import annotations

import argparse
from typing import Any

from deferred_middleware.cli.client import AdminClient, add_client_arguments
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.output import local_time, print_answer, print_error, print_json, print_line, print_table


def list_cron(arguments: argparse.Namespace) -> int:
    """Print the entries of cron.yaml, or run one; return the exit status."""
    client = AdminClient(arguments)
    if arguments.run is not None:
        answer = client.post("cron", str(arguments.run), "run")
        what = "is running" if answer["running"] else f"answered with status {answer['status']}"
        print_answer(arguments, answer, f"{answer['url']} {what}.")
        return 0 if answer["running"] or 200 <= answer["status"] < 300 else 1
    answer = client.get("cron")
    if arguments.json:
        print_json(answer)
        return 0
    if answer["error"] is not None:
        print_error(answer["error"]["message"])
        return 1
    if not answer["entries"]:
        print_line("There is no cron.yaml with entries.")
        return 0
    print_table(
        ["NO", "URL", "TARGET", "NEXT", "SCHEDULE"],
        [
            [
                one["number"],
                one["url"],
                one["target"] or "default",
                _next(one),
                f"{one['schedule']} ({one['timezone']})",
            ]
            for one in answer["entries"]
        ],
        right=("NO",),
    )
    return 0


def _next(entry: dict[str, Any]) -> str:
    if entry["problem"]:
        return "wrong schedule"
    if entry["after_last_run"]:
        return "after the last run"
    return local_time(entry["next_usec"][0])[:16] if entry["next_usec"] else "never"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=int, metavar="NO", help="run this entry now")
    add_client_arguments(parser)


COMMANDS = (
    Command(
        name="cron",
        summary="list the entries of cron.yaml, or run one",
        description="List the entries of cron.yaml with their next times. The local server doesn't run them by itself. "
        "With --run, it sends the request of an entry, with the platform's header, to the entry's target.",
        examples=("deferred-middleware cron", "deferred-middleware cron --run 0"),
        add_arguments=_add_arguments,
        run=list_cron,
    ),
)

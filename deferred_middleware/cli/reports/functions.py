"""The command ``functions``."""

from __future__ import annotations

import argparse

from deferred_middleware.cli.client import AdminClient, add_client_arguments
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.output import local_time, print_json, print_line, print_table

_PERIODS = ("hour", "day", "week")


def list_functions(arguments: argparse.Namespace) -> int:
    """Print the functions, or one with its slowest attempts; return the exit status."""
    client = AdminClient(arguments)
    answer = client.get("functions", period=arguments.period, function=arguments.function)
    if arguments.json:
        print_json(answer)
        return 0
    if arguments.function is None:
        functions = answer["functions"]
    else:
        functions = [answer["function"]] if answer["function"] else []
    if not functions:
        print_line(f"No task was enqueued or executed in the last {arguments.period}.")
    else:
        print_table(
            ["ENQUEUED", "ATTEMPTS", "FAILED", "DEAD", "P50", "P95", "P99", "FUNCTION"],
            [
                [
                    f"{one['enqueued']:,}",
                    f"{one['executed']:,}",
                    f"{one['failed']:,}",
                    f"{one['dead']:,}",
                    *(_milliseconds(one[field]) for field in ("took_p50", "took_p95", "took_p99")),
                    one["name"],
                ]
                for one in functions
            ],
            right=("ENQUEUED", "ATTEMPTS", "FAILED", "DEAD", "P50", "P95", "P99"),
        )
    if arguments.function is not None and answer["slowest"]:
        print_line("\nThe slowest attempts:")
        print_table(
            ["TASK", "ATTEMPT", "TOOK", "QUEUE", "STARTED"],
            [
                [
                    one["task_id"],
                    one["number"],
                    _milliseconds(one["duration_usec"]),
                    one["queue"],
                    local_time(one["started_usec"]),
                ]
                for one in answer["slowest"]
            ],
            right=("TASK", "ATTEMPT", "TOOK"),
        )
    return 0


def _milliseconds(usec: int | None) -> str:
    return "" if usec is None else f"{usec / 1000:,.1f} ms"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("function", nargs="?", metavar="FUNCTION", help="show this function with its slowest attempts")
    parser.add_argument(
        "--period", choices=_PERIODS, default="hour", help="how far to look back (default: %(default)s)"
    )
    add_client_arguments(parser)


COMMANDS = (
    Command(
        name="functions",
        summary="list functions, with how often they ran and how long they took",
        description="List the functions that had tasks in the last hour, day or week: how many tasks were enqueued, "
        "how many attempts were made and failed, and percentiles of how long the attempts took.",
        examples=(
            "deferred-middleware functions --period day",
            "deferred-middleware functions mail/send_welcome",
        ),
        add_arguments=_add_arguments,
        run=list_functions,
    ),
)

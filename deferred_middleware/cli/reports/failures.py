"""The command ``failures``."""

from __future__ import annotations

import argparse

from deferred_middleware.cli.client import AdminClient, add_client_arguments
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.output import count, print_json, print_line, print_table, relative_time


def list_failures(arguments: argparse.Namespace) -> int:
    """Print the groups of failures, or one with its tasks; return the exit status."""
    client = AdminClient(arguments)
    if arguments.failure is not None:
        answer = client.get("failures", str(arguments.failure))
    else:
        answer = client.get("failures", before=arguments.before, solved=1 if arguments.solved else None)
    if arguments.json:
        print_json(answer)
        return 0
    groups = answer["failures"] if arguments.failure is None else [answer["failure"]]
    if not groups:
        print_line("No task fails." if not arguments.solved else "There are no solved failures.")
        return 0
    print_table(
        ["ID", "DEAD", "FAILING", "ATTEMPTS", "FIRST", "LAST", "PLACE", "FAILURE"],
        [
            [
                one["id"],
                one["dead"],
                one["failing"],
                one["attempts"],
                relative_time(one["first_usec"]),
                relative_time(one["last_usec"]),
                f"{one['file']}:{one['line']}" if one["file"] else one["function"],
                f"{one['exception']}: {one['message']}" if one["message"] else one["exception"],
            ]
            for one in groups
        ],
        right=("ID", "DEAD", "FAILING", "ATTEMPTS"),
    )
    if arguments.failure is not None:
        print_line("")
        print_table(
            ["ID", "QUEUE", "STATE", "TRIES", "NAME"],
            [[task["id"], task["queue"], task["state"], task["retry_count"], task["name"]] for task in answer["tasks"]],
            right=("ID", "TRIES"),
        )
        number = groups[0]["dead"] + groups[0]["failing"]
        if number:
            print_line(f"To retry {count(number, 'task')}: deferred-middleware retry --failure {groups[0]['id']}")
    elif answer["next_before"]:
        print_line(f"There are more; --before {answer['next_before']} shows the next ones.")
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("failure", nargs="?", type=int, metavar="ID", help="show this failure with its tasks")
    parser.add_argument("--solved", action="store_true", help="list failures of which no task is left")
    parser.add_argument("--before", metavar="POSITION", help="continue a list, as its last line says")
    add_client_arguments(parser)


COMMANDS = (
    Command(
        name="failures",
        summary="list how tasks fail",
        description="List how tasks fail. Dead letters and tasks that wait for another attempt are together if they "
        "failed with the same exception at the same place in your code.",
        examples=(
            "deferred-middleware failures",
            "deferred-middleware failures 3",
            "deferred-middleware failures --solved",
        ),
        add_arguments=_add_arguments,
        run=list_failures,
    ),
)

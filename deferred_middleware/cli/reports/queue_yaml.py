"""The command ``queue-yaml``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from deferred_middleware.cli.client import AdminClient, add_client_arguments
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.output import count, duration, print_error, print_json, print_line, print_table
from deferred_middleware.errors import ServerError


def show_queue_yaml(arguments: argparse.Namespace) -> int:
    """Print the values of the queues, or what another file would change; return the exit status."""
    client = AdminClient(arguments)
    if arguments.file is None:
        answer = client.get("queue-yaml")
    else:
        try:
            text = arguments.file.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ServerError(f"{arguments.file} can't be read: {error}.") from error
        answer = client.post("queue-yaml", "preview", content={"text": text})
    if arguments.json:
        print_json(answer)
    elif arguments.file is None:
        _print_values(answer)
    else:
        _print_preview(answer)
    if answer["error"] is None:
        return 0
    if not arguments.json:
        print_error(answer["error"]["message"])
    return 1


def _print_values(answer: dict[str, Any]) -> None:
    print_line(f"{answer['path']}{'' if answer['text'] is not None else ' (there is no such file)'}")
    print_table(
        ["QUEUE", "FIELD", "VALUE", "FROM"],
        [
            [queue["name"], value["field"], value["value"], value["origin"]]
            for queue in answer["queues"]
            for value in queue["values"]
        ],
    )
    for warning in answer["warnings"]:
        print_line(warning)


def _print_preview(answer: dict[str, Any]) -> None:
    for line in answer["changes"] or (["Nothing would change."] if answer["error"] is None else []):
        print_line(line)
    for one in answer["backlogs"]:
        print_line(f"Queue {one['queue']}: {count(one['tasks'], 'task')} would start {_time(one['after_seconds'])}.")
    for warning in answer["warnings"]:
        print_line(warning)


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "never, because the rate is 0"
    return f"in {duration(seconds)} or more" if seconds else "as fast as the services take them"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="say what this file would change")
    add_client_arguments(parser)


COMMANDS = (
    Command(
        name="queue-yaml",
        summary="show the queues' values and where they come from, or what an edit would change",
        description="Show the values of each queue that are in force, and where they come from. With a FILE, say what "
        "would change if it were the server's queue.yaml, and how long the tasks that wait would take to start. "
        "Nothing is written.",
        examples=("deferred-middleware queue-yaml", "deferred-middleware queue-yaml edited.yaml"),
        add_arguments=_add_arguments,
        run=show_queue_yaml,
    ),
)

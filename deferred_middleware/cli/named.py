"""What a command does to tasks that a person has named, one after the other."""

from __future__ import annotations

import argparse
from typing import Any

from deferred_middleware.cli.client import Connection, task_path
from deferred_middleware.cli.output import print_json, say


def add_task_arguments(parser: argparse.ArgumentParser, *, optional: bool) -> None:
    """Add the argument that names tasks."""
    parser.add_argument("tasks", nargs="*" if optional else "+", metavar="TASK", help="its ID, or QUEUE/NAME")


def change_named(arguments: argparse.Namespace, connection: Connection, action: str, done: str) -> int:
    """Do ``action`` to each task, until one to which it can't be done; ``done`` tells a person what has become of one.

    Returns the exit status. What was done before an error is printed all the same.
    """
    paths = [task_path(task) for task in arguments.tasks]
    answers: list[dict[str, Any]] = []
    try:
        for path in paths:
            answers.append(connection.post(*path, action))
            if not arguments.json:
                say(f"Task {answers[-1]['task']} {done}.")
    finally:
        if arguments.json:
            print_json({"tasks": answers})
    return 0

"""``deferred-middleware show``: one task, with its call, its headers and its attempts."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from deferred_middleware.cli.client import Connection, add_arguments, task_path
from deferred_middleware.cli.output import distance, duration, moment, print_json, printable, printable_lines, say

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers

_LABEL_WIDTH = 14


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "show",
        help="show a task",
        description="Show a task: what it calls, read without running anything of it, its headers and its attempts.",
    )
    parser.add_argument("task", metavar="TASK", help="its ID, or QUEUE/NAME")
    add_arguments(parser)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Print a task; return the exit status."""
    answer = Connection(arguments).get(*task_path(arguments.task))
    if arguments.json:
        print_json(answer)
        return 0
    task = answer["task"]
    _line(f"task {task['id']}", f"{task['queue']}/{task['name']}")
    _line("state", _state(task))
    _line("added", _when(task["created_usec"]))
    _line("ETA", _when(task["eta_usec"]))
    if task["first_attempt_usec"] is not None:
        _line("first attempt", _when(task["first_attempt_usec"]))
    if task["finished_usec"] is not None:
        _line("finished", _when(task["finished_usec"]))
    _line("request", f"{task['method']} {task['url']}")
    _line("target", task["target"] or "(the default service)")
    if task["dispatch_deadline_usec"] is not None:
        _line("deadline", duration(task["dispatch_deadline_usec"] / 1e6))
    if task["retry"] is not None:
        shown = ", ".join(f"{name} {value}" for name, value in task["retry"].items() if value is not None)
        _line("retry options", shown)
    if task["tag"] is not None:
        _line("tag", task["tag"])
    _print_payload(task)
    for name, value in task["headers"]:
        _line("header", f"{name}: {value}")
    _print_attempts(task["attempts"])
    return 0


def _line(label: str, text: str) -> None:
    say(f"{label:<{_LABEL_WIDTH}} {printable(text)}")


def _when(usec: int) -> str:
    return f"{moment(usec)} ({distance(usec)})"


def _state(task: dict[str, Any]) -> str:
    state = str(task["state"])
    if state == "failed":
        state += " for good: it will not be tried again unless somebody retries it"
    elif state == "ready" and task["retry_count"]:
        state += f", to be tried again after {task['retry_reason']}"
    return state


def _print_payload(task: dict[str, Any]) -> None:
    payload = task["payload"]
    label = {"call": "call", "pickle": "pickle", "overflow": "payload", "empty": "body"}.get(payload["kind"], "body")
    packed = ", compressed" if payload["compressed"] else ""
    first, *more = printable_lines(payload["text"]) or ["(empty)"]
    _line(label, first)
    for line in more:
        _line("", line)
    if payload["problem"]:
        _line("", f"({payload['problem']})")
    _line("size", f"{task['body_bytes']:,} bytes{packed}")


def _print_attempts(attempts: list[dict[str, Any]]) -> None:
    if not attempts:
        say("It has not been tried yet.")
    for attempt in attempts:
        status = "no response" if attempt["status"] is None else f"status {attempt['status']}"
        reason = f": {attempt['reason']}" if attempt["reason"] and attempt["reason"] != status else ""
        say(
            f"\nattempt {attempt['number']}, {moment(attempt['started_usec'])}, in service "
            f"{printable(attempt['service'] or '(default)')}, {duration(attempt['duration_usec'] / 1e6)}: "
            f"{status}{printable(reason)}"
        )
        for line in printable_lines(attempt["excerpt"]):
            say(f"    {line}")

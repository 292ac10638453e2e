"""Commands for tasks: ``tasks``, ``show``, ``run``, ``retry`` and ``delete``."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from deferred_middleware.cli.client import (
    AdminClient,
    UsageError,
    add_client_arguments,
    add_yes_argument,
    confirm,
    task_path,
)
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.output import (
    count,
    duration,
    local_time,
    print_answer,
    print_json,
    print_line,
    print_table,
    printable_lines,
    relative_time,
)
from deferred_middleware.errors.text import printable

_STATES = ("ready", "due", "scheduled", "retrying", "running", "succeeded", "failed")
_FILTERS = ("queue", "state", "function", "service", "name", "text", "older", "newer", "slower", "faster")
_CLEAR = "\x1b[H\x1b[2J"
_MAX_PAGE = 1000
_LABEL_WIDTH = 14


def list_tasks(arguments: argparse.Namespace) -> int:
    """Print the tasks, the newest first, with ``--watch`` again and again; return the exit status."""
    if arguments.watch is None:
        return _list_once(AdminClient(arguments), arguments)
    if arguments.json:
        raise UsageError("--watch prints a table; it can't be used with --json.")
    while True:
        if sys.stdout.isatty():
            sys.stdout.write(_CLEAR)
        _list_once(AdminClient(arguments), arguments)
        sys.stdout.flush()
        time.sleep(arguments.watch)


def _list_once(client: AdminClient, arguments: argparse.Namespace) -> int:
    tasks: list[dict[str, Any]] = []
    before = arguments.before
    while True:
        answer = client.get(
            "tasks",
            **{name: getattr(arguments, name) for name in _FILTERS},
            before=before,
            limit=min(_MAX_PAGE, arguments.limit - len(tasks)),
            calls=1,
        )
        tasks += answer["tasks"]
        before = answer["next_before"]
        # With --function a page may be empty without being the last one.
        if before is None or len(tasks) >= arguments.limit:
            break
    if arguments.json:
        print_json({"tasks": tasks, "next_before": before})
        return 0
    if not tasks:
        print_line("There are no such tasks.")
        return 0
    print_table(
        ["ID", "QUEUE", "STATE", "TRIES", "LAST", "TOOK", "AGE", "NEXT", "CALL"],
        [_table_row(task) for task in tasks],
        right=("ID", "TRIES", "LAST", "TOOK", "AGE"),
    )
    if before is not None:
        print_line(f"There are more; --before {before} shows the next ones.")
    return 0


def show_task(arguments: argparse.Namespace) -> int:
    """Print one task with its call, its headers and its attempts; return the exit status."""
    answer = AdminClient(arguments).get(*task_path(arguments.task))
    if arguments.json:
        print_json(answer)
        return 0
    task = answer["task"]
    _print_field(f"task {task['id']}", f"{task['queue']}/{task['name']}")
    _print_field("state", _state_text(task))
    if task["why"]:
        _print_field("waits", task["why"])
    _print_field("added", _time_text(task["created_usec"]))
    _print_field("ETA", _time_text(task["eta_usec"]))
    if task["first_attempt_usec"] is not None:
        _print_field("first attempt", _time_text(task["first_attempt_usec"]))
    if task["finished_usec"] is not None:
        _print_field("finished", _time_text(task["finished_usec"]))
    _print_field("request", f"{task['method']} {task['url']}")
    _print_field("target", task["target"] or "(the default service)")
    if task["dispatch_deadline_usec"] is not None:
        _print_field("deadline", duration(task["dispatch_deadline_usec"] / 1e6))
    if task["retry"] is not None:
        given = ", ".join(f"{name} {value}" for name, value in task["retry"].items() if value is not None)
        _print_field("retry options", given)
    if task["tag"] is not None:
        _print_field("tag", task["tag"])
    _print_payload(task)
    for name, value in task["headers"]:
        _print_field("header", f"{name}: {value}")
    _print_attempts(task["attempts"])
    return 0


def run_tasks(arguments: argparse.Namespace) -> int:
    """Make the tasks run now; return the exit status."""
    return _change_tasks(arguments, AdminClient(arguments), "run", "runs as soon as its service can take it")


def retry_tasks(arguments: argparse.Namespace) -> int:
    """Retry the given tasks that failed for good, all of a failure, or with ``--all`` all; return the exit status."""
    if arguments.failure is not None:
        if arguments.tasks or arguments.all or arguments.queue:
            raise UsageError("--failure can only be used alone.")
        answer = AdminClient(arguments).post("failures", str(arguments.failure), "retry")
        due = f" The back-off of {count(answer['made_due'], 'task')} is ended." if answer["made_due"] else ""
        print_answer(arguments, answer, f"{count(answer['retried'], 'failed task')} will be tried again.{due}")
        return 0
    if bool(arguments.tasks) == arguments.all:
        raise UsageError("Name the tasks to retry, or give --all.")
    if arguments.queue and not arguments.all:
        raise UsageError("--queue can only be used with --all.")
    client = AdminClient(arguments)
    if not arguments.all:
        return _change_tasks(arguments, client, "retry", "will be tried again")
    answer = client.post("queues", arguments.queue, "retry") if arguments.queue else client.post("retry")
    print_answer(arguments, answer, f"{count(answer['retried'], 'failed task')} will be tried again.")
    return 0


def delete_tasks(arguments: argparse.Namespace) -> int:
    """Delete the given tasks, or with ``--failed`` all of a queue that failed for good; return the exit status."""
    if bool(arguments.tasks) == bool(arguments.failed):
        raise UsageError("Name the tasks to delete, or give --failed QUEUE.")
    client = AdminClient(arguments)
    if not arguments.failed:
        return _change_tasks(arguments, client, "delete", "is deleted")
    confirm(arguments, f"Delete all tasks of queue {arguments.failed} that failed for good?")
    answer = client.post("queues", arguments.failed, "delete-failed")
    print_answer(arguments, answer, f"{count(answer['deleted'], 'failed task')} deleted.")
    return 0


def _change_tasks(arguments: argparse.Namespace, client: AdminClient, action: str, result: str) -> int:
    """Apply ``action`` to the tasks of the command line, one by one, and print ``Task … <result>.`` for each.

    The first error ends the loop and is raised; what was done before it is printed nevertheless.
    """
    paths = [task_path(task) for task in arguments.tasks]
    answers: list[dict[str, Any]] = []
    try:
        for path in paths:
            answers.append(client.post(*path, action))
            if not arguments.json:
                print_line(f"Task {answers[-1]['task']} {result}.")
    finally:
        if arguments.json:
            print_json({"tasks": answers})
    return 0


def _table_row(task: dict[str, Any]) -> list[object]:
    now_usec = time.time() * 1e6
    state, status = task["state"], task["previous_response"]
    later = state == "ready" and task["method"] != "PULL" and task["eta_usec"] > now_usec
    if later:
        state = "retrying" if task["retry_count"] else "scheduled"
    last = "" if status is None else "none" if status == 0 else status
    if state == "failed" and status is not None and 200 <= status < 300:
        last = "dropped"  # the response says that the failure is permanent
    took = task["duration_usec"]
    return [
        task["id"],
        task["queue"],
        state,
        task["retry_count"],
        last,
        "" if took is None else duration(took / 1e6),
        duration(max(0.0, (now_usec - task["created_usec"]) / 1e6)),
        relative_time(task["eta_usec"]) if later else "",
        task["call"] or task["function"] or task["url"],
    ]


def _print_field(label: str, text: str) -> None:
    print_line(f"{label:<{_LABEL_WIDTH}} {printable(text)}")


def _time_text(usec: int) -> str:
    return f"{local_time(usec)} ({relative_time(usec)})"


def _state_text(task: dict[str, Any]) -> str:
    state = str(task["state"])
    if state == "failed":
        return f"{state} for good: it runs again only if you retry it"
    if state == "ready" and task["retry_count"]:
        return f"{state}, will be tried again after {task['retry_reason']}"
    return state


def _print_payload(task: dict[str, Any]) -> None:
    payload = task["payload"]
    label = {"call": "call", "pickle": "pickle", "overflow": "payload"}.get(payload["kind"], "body")
    first, *more = printable_lines(payload["text"]) or ["(empty)"]
    _print_field(label, first)
    for line in more:
        _print_field("", line)
    if payload["problem"]:
        _print_field("", f"({payload['problem']})")
    _print_field("size", f"{count(task['body_bytes'], 'byte')}{', compressed' if payload['compressed'] else ''}")


def _print_attempts(attempts: list[dict[str, Any]]) -> None:
    if not attempts:
        print_line("It has not been tried yet.")
    for attempt in attempts:
        status = "no response" if attempt["status"] is None else f"status {attempt['status']}"
        reason = f": {attempt['reason']}" if attempt["reason"] and attempt["reason"] != status else ""
        print_line(
            f"\nattempt {attempt['number']}, {local_time(attempt['started_usec'])}, in service "
            f"{printable(attempt['service'] or '(default)')}, {duration(attempt['duration_usec'] / 1e6)}: "
            f"{status}{printable(reason)}"
        )
        for line in printable_lines(attempt["excerpt"]):
            print_line(f"    {line}")


def _positive_number(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _add_list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--queue", metavar="NAME", help="only tasks of this queue")
    parser.add_argument(
        "--state",
        choices=_STATES,
        help="only tasks in this state; due, scheduled and retrying are those ready tasks that wait for their turn, "
        "for their ETA, or for another attempt, and failed means failed for good",
    )
    parser.add_argument(
        "--function",
        metavar="TEXT",
        help="only tasks whose URL contains this text, such as mail/send_welcome or send_welcome",
    )
    parser.add_argument("--service", metavar="NAME", help="only tasks for this service")
    parser.add_argument("--name", metavar="TEXT", help="only tasks whose name contains this text")
    parser.add_argument("--text", metavar="TEXT", help="only tasks whose payload contains this text")
    parser.add_argument("--newer", metavar="AGE", help="only tasks added in this time, such as 10min or 2h")
    parser.add_argument("--older", metavar="AGE", help="only tasks added before this time, such as 1d")
    parser.add_argument("--slower", metavar="TIME", help="only tasks whose last attempt took at least so long")
    parser.add_argument("--faster", metavar="TIME", help="only tasks whose last attempt took at most this")
    parser.add_argument(
        "--limit",
        type=_positive_number,
        default=50,
        metavar="N",
        help="list at most this many tasks (default: %(default)s)",
    )
    parser.add_argument(
        "--before", type=_positive_number, metavar="ID", help="only tasks that were added before the task with this ID"
    )
    parser.add_argument(
        "--watch",
        nargs="?",
        type=_seconds,
        const=2.0,
        metavar="SECONDS",
        help="list them again and again, with this pause (default: 2), until Ctrl-C",
    )
    add_client_arguments(parser)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not from 0.1 to 3600 seconds")
    return seconds


def _add_show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="the task's ID, or QUEUE/NAME")
    add_client_arguments(parser)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    _add_task_arguments(parser, nargs="+")
    add_client_arguments(parser)


def _add_retry_arguments(parser: argparse.ArgumentParser) -> None:
    _add_task_arguments(parser, nargs="*")
    parser.add_argument("--all", action="store_true", help="retry every task that failed for good")
    parser.add_argument("--queue", metavar="NAME", help="with --all: only tasks of this queue")
    parser.add_argument(
        "--failure", type=int, metavar="ID", help="retry all tasks that failed in this way; 'failures' lists the IDs"
    )
    add_client_arguments(parser)


def _add_delete_arguments(parser: argparse.ArgumentParser) -> None:
    _add_task_arguments(parser, nargs="*")
    parser.add_argument("--failed", metavar="QUEUE", help="delete every task of this queue that failed for good")
    add_yes_argument(parser)
    add_client_arguments(parser)


def _add_task_arguments(parser: argparse.ArgumentParser, *, nargs: str) -> None:
    parser.add_argument("tasks", nargs=nargs, metavar="TASK", help="a task's ID, or QUEUE/NAME")


COMMANDS = (
    Command(
        name="tasks",
        summary="list tasks",
        description="List tasks, the most recently added first.",
        examples=(
            "deferred-middleware tasks --state failed",
            "deferred-middleware tasks --function send_welcome --limit 10",
            "deferred-middleware tasks --state retrying --watch",
        ),
        add_arguments=_add_list_arguments,
        run=list_tasks,
    ),
    Command(
        name="show",
        summary="show a task",
        description="Show a task: its call, its headers and its attempts. The call is read from the payload without "
        "unpickling it, so none of the payload's code runs.",
        examples=(
            "deferred-middleware show 42",
            "deferred-middleware show default/my-name --json",
        ),
        add_arguments=_add_show_arguments,
        run=show_task,
    ),
    Command(
        name="run",
        summary="run tasks now",
        description="Run waiting tasks now. Their ETA, their back-off, and the rate and the pause of their queue are "
        "ignored.",
        examples=("deferred-middleware run 42",),
        add_arguments=_add_run_arguments,
        run=run_tasks,
    ),
    Command(
        name="retry",
        summary="retry tasks that failed for good",
        description="Retry tasks that failed for good, at once, and count their attempts from the beginning.",
        examples=(
            "deferred-middleware retry 42",
            "deferred-middleware retry --all --queue default",
            "deferred-middleware retry --failure 3",
        ),
        add_arguments=_add_retry_arguments,
        run=retry_tasks,
    ),
    Command(
        name="delete",
        summary="delete tasks",
        description="Delete tasks in any state, with their attempts. A running task runs to its end. A name that the "
        "app chose stays taken; to make it available again, use 'forget'.",
        examples=(
            "deferred-middleware delete 42 43",
            "deferred-middleware delete --failed default --yes",
        ),
        add_arguments=_add_delete_arguments,
        run=delete_tasks,
    ),
)

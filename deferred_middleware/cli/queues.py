"""Commands for queues, for a task's place in them, and, for tests, ``clock`` and ``reset``."""

from __future__ import annotations

import argparse

from deferred_middleware.cli.client import (
    MOST_COUNTED,
    AdminClient,
    add_client_arguments,
    add_yes_argument,
    confirm,
    task_path,
)
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.output import count, local_time, print_answer, print_json, print_table, relative_time

_NUMBERS = ("DUE", "SCHEDULED", "RETRYING", "RUNNING", "SUCCEEDED", "FAILED")


def list_queues(arguments: argparse.Namespace) -> int:
    """Print the queues; return the exit status."""
    answer = AdminClient(arguments).get("queues")
    if arguments.json:
        print_json(answer)
        return 0
    rows = []
    for queue in answer["queues"]:
        numbers = [
            f"{queue[key]:,}{'+' if key in ('due', 'scheduled') and queue[key] >= MOST_COUNTED else ''}"
            for key in (name.lower() for name in _NUMBERS)
        ]
        state = "paused" if queue["paused"] else "" if queue["configured"] else "not configured"
        rows.append([queue["name"], *numbers, relative_time(queue["next_eta_usec"]), state])
    print_table(["QUEUE", *_NUMBERS, "NEXT", "STATE"], rows, right=_NUMBERS)
    return 0


def pause_queue(arguments: argparse.Namespace) -> int:
    """Pause the queue; return the exit status."""
    answer = AdminClient(arguments).post("queues", arguments.queue, "pause")
    state = "paused" if answer["changed"] else "paused already"
    print_answer(arguments, answer, f"Queue {answer['queue']} is {state}.")
    return 0


def resume_queue(arguments: argparse.Namespace) -> int:
    """Resume the queue; return the exit status."""
    answer = AdminClient(arguments).post("queues", arguments.queue, "resume")
    state = "runs again" if answer["changed"] else "was not paused"
    print_answer(arguments, answer, f"Queue {answer['queue']} {state}.")
    return 0


def purge_queue(arguments: argparse.Namespace) -> int:
    """Purge the queue; return the exit status."""
    client = AdminClient(arguments)
    confirm(arguments, f"Delete all unfinished tasks of queue {arguments.queue}?")
    answer = client.post("queues", arguments.queue, "purge")
    deleted = count(answer["deleted"], "task")
    undo = ""
    if answer["deleted"] and answer["undo_until_usec"] is not None:
        undo = f" For ten minutes, 'deferred-middleware undo-purge {answer['queue']}' brings them back."
    print_answer(arguments, answer, f"{deleted} of queue {answer['queue']} deleted.{undo}")
    return 0


def undo_purge(arguments: argparse.Namespace) -> int:
    """Bring back what the last purge of the queue deleted; return the exit status."""
    answer = AdminClient(arguments).post("queues", arguments.queue, "undo-purge")
    print_answer(arguments, answer, f"{count(answer['restored'], 'task')} of queue {answer['queue']} restored.")
    return 0


def forget_names(arguments: argparse.Namespace) -> int:
    """Make names of finished tasks available again; return the exit status."""
    content = None if arguments.name is None else {"name": arguments.name}
    answer = AdminClient(arguments).post("queues", arguments.queue, "forget", content=content)
    names = count(answer["forgotten"], "name")
    print_answer(arguments, answer, f"{names} of queue {answer['queue']} can be used again.")
    return 0


def reschedule_task(arguments: argparse.Namespace) -> int:
    """Change a waiting task's ETA; return the exit status."""
    answer = AdminClient(arguments).post(*task_path(arguments.task), "eta", content={"eta": arguments.eta})
    print_answer(arguments, answer, f"The ETA of task {answer['task']} is {local_time(answer['eta_usec'])}.")
    return 0


def move_task(arguments: argparse.Namespace) -> int:
    """Move a waiting task to another queue; return the exit status."""
    answer = AdminClient(arguments).post(*task_path(arguments.task), "queue", content={"queue": arguments.queue})
    print_answer(arguments, answer, f"Task {answer['task']} is in queue {answer['queue']}.")
    return 0


def _add_queue_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", metavar="QUEUE", help="the queue's name")
    add_client_arguments(parser)


def _add_purge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", metavar="QUEUE", help="the queue's name")
    add_yes_argument(parser)
    add_client_arguments(parser)


def _add_forget_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("queue", metavar="QUEUE", help="the queue's name")
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this task name (default: all)")
    add_client_arguments(parser)


def _add_reschedule_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="the task's ID, or QUEUE/NAME")
    parser.add_argument("eta", metavar="ETA", help="a time from now, such as 10min or 2h, or 2026-12-24T18:00")
    add_client_arguments(parser)


def _add_move_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="the task's ID, or QUEUE/NAME")
    parser.add_argument("queue", metavar="QUEUE", help="the queue to move it to")
    add_client_arguments(parser)


def show_clock(arguments: argparse.Namespace) -> int:
    """Print the time of the server, after moving it; return the exit status."""
    client = AdminClient(arguments)
    content: dict[str, object] = {}
    if arguments.advance is not None:
        content["advance_seconds"] = arguments.advance
    if arguments.freeze or arguments.run:
        content["frozen"] = arguments.freeze
    answer = client.post("clock", content=content) if content else client.get("clock")
    ahead = f", {answer['ahead_seconds']:,.0f} s ahead of this machine" if abs(answer["ahead_seconds"]) >= 1 else ""
    state = "; it stands still" if answer["frozen"] else ""
    print_answer(arguments, answer, f"It is {answer['now']}{ahead}{state}.")
    return 0


def reset_server(arguments: argparse.Namespace) -> int:
    """Delete everything that the server has; return the exit status."""
    client = AdminClient(arguments)
    confirm(arguments, "Delete all tasks of all queues, and the queues that clients have made?")
    answer = client.post("reset")
    print_answer(arguments, answer, f"{count(answer['deleted'], 'task')} deleted.")
    return 0


def _add_clock_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--advance", type=float, metavar="SECONDS", help="let this time pass at once")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--freeze", action="store_true", help="stop the clock, so that only --advance moves it")
    group.add_argument("--run", action="store_true", help="start a clock again that was stopped")
    add_client_arguments(parser)


def _add_reset_arguments(parser: argparse.ArgumentParser) -> None:
    add_yes_argument(parser)
    add_client_arguments(parser)


COMMANDS = (
    Command(
        name="queues",
        summary="list the queues",
        description="List the queues. For each queue it shows how many tasks are due, wait for their ETA, wait for "
        "another attempt, are running, have succeeded, and have failed for good.",
        examples=(
            "deferred-middleware queues",
            "deferred-middleware queues --json",
        ),
        add_arguments=add_client_arguments,
        run=list_queues,
    ),
    Command(
        name="pause",
        summary="pause a queue",
        description="Pause a queue: until you resume it, also after a restart of the server, none of its tasks is "
        "started. Running tasks run to their end, and the app can still add tasks.",
        examples=("deferred-middleware pause default",),
        add_arguments=_add_queue_arguments,
        run=pause_queue,
    ),
    Command(
        name="resume",
        summary="resume a paused queue",
        description="Resume a paused queue: its tasks run again.",
        examples=("deferred-middleware resume default",),
        add_arguments=_add_queue_arguments,
        run=resume_queue,
    ),
    Command(
        name="purge",
        summary="delete all unfinished tasks of a queue",
        description="Delete all tasks of a queue that are not finished. Running tasks run to their end. Tasks that "
        "succeeded or failed for good stay in the history.",
        examples=(
            "deferred-middleware purge default",
            "deferred-middleware purge default --yes",
        ),
        add_arguments=_add_purge_arguments,
        run=purge_queue,
    ),
    Command(
        name="undo-purge",
        summary="bring back the tasks of a purge",
        description="Bring back the tasks that the last purge of a queue deleted. This is possible for ten minutes.",
        examples=("deferred-middleware undo-purge default",),
        add_arguments=_add_queue_arguments,
        run=undo_purge,
    ),
    Command(
        name="reschedule",
        summary="change a task's ETA",
        description="Change the ETA of a waiting task, also of one that waits for another attempt.",
        examples=("deferred-middleware reschedule 42 10min",),
        add_arguments=_add_reschedule_arguments,
        run=reschedule_task,
    ),
    Command(
        name="move",
        summary="move a task to another queue",
        description="Move a waiting task to another queue, whose rate, target and retry options then hold for it.",
        examples=("deferred-middleware move 42 slow",),
        add_arguments=_add_move_arguments,
        run=move_task,
    ),
    Command(
        name="forget",
        summary="make used task names available again",
        description="Make the names of finished tasks available again. Otherwise a name that the app gave to a task "
        "stays taken for days. The tasks themselves stay in the history.",
        examples=(
            "deferred-middleware forget default",
            "deferred-middleware forget default my-name",
        ),
        add_arguments=_add_forget_arguments,
        run=forget_names,
    ),
    Command(
        name="clock",
        summary="show the time of the server, or move it for a test",
        description="Show the time by which the server runs tasks, or change it for a test: let time pass at once, "
        "stop the clock, or start it again. A server that starts has the time of the machine.",
        examples=("deferred-middleware clock --advance 3600", "deferred-middleware clock --freeze"),
        add_arguments=_add_clock_arguments,
        run=show_clock,
    ),
    Command(
        name="reset",
        summary="delete all tasks, taken names, and queues that clients have made",
        description="Delete all tasks in any state, all taken names, the pauses of queues, and the queues that clients "
        "of the Cloud Tasks API have made.",
        examples=("deferred-middleware reset --yes",),
        add_arguments=_add_reset_arguments,
        run=reset_server,
    ),
)

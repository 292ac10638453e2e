"""Commands that use the engine or the datastore themselves: ``call``, ``exec``, ``replay`` and ``sweep``."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deferred_middleware.cli.client import NotRunningError
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.output import count, print_error, print_line
from deferred_middleware.engines.request_scope import connect_process
from deferred_middleware.errors import DeferredError, ServerError
from deferred_middleware.errors.text import shortened, text_of
from deferred_middleware.server.admin.server_file import SERVER_FILE, read_server_file


def replay_dead_letters(arguments: argparse.Namespace) -> int:
    """Enqueue each dead letter of a file again; return 1 if one was not enqueued.

    Raises :class:`ServerError` if the file can't be read or has no dead letter.
    """
    from deferred_middleware.errors.sdk_types import apiproxy_errors, taskqueue
    from deferred_middleware.execution.dead_letters import MARK, ReplayError, replay

    try:
        text = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text(errors="backslashreplace")
    except OSError as error:
        raise ServerError(f"{arguments.file} can't be read: {error.strerror}.") from error
    lines = [line for line in text.splitlines() if MARK in line or line.lstrip().startswith("{")]
    if not lines:
        raise ServerError(f"{arguments.file} has no line of a dead letter ({MARK}…).")
    connect_process()
    failed = 0
    for number, line in enumerate(lines, 1):
        try:
            task = replay(line, queue=arguments.queue, target=arguments.target)
        except (ReplayError, taskqueue.Error, apiproxy_errors.Error, AssertionError) as error:
            failed += 1
            print_error(f"dead letter {number}: not enqueued: {error or type(error).__name__}")
        else:
            print_line(f"dead letter {number}: enqueued as {task.name} in queue {task.queue_name}")
    return 1 if failed else 0


def sweep_datastore(arguments: argparse.Namespace) -> int:
    """Remove expired payloads, and send committed tasks to Cloud Tasks; return 1 if one could not be sent.

    Raises :class:`ServerError` if no datastore is configured, or if the datastore fails.
    """
    from deferred_middleware.wire import entities
    from deferred_middleware.wire.overflow import sweep

    connect_process()
    if not entities.is_available():
        raise ServerError(
            "No datastore is configured: set API_HOST, API_PORT and HTTP_X_APPENGINE_API_TICKET, or run the command "
            "with the variables of the app on Cloud Run."
        )
    try:
        removed = sweep(max_seconds=arguments.max_seconds)
        print_line(f"{count(removed, 'expired entity', 'expired entities')} removed.")
        return _sweep_outbox(arguments.max_seconds)
    except _datastore_failures() as error:
        raise ServerError(f"The datastore could not be swept: {error or type(error).__name__}.") from error


def _datastore_failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of the datastore's clients."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    from deferred_middleware.errors.sdk_types import apiproxy_errors, datastore_errors

    return datastore_errors.Error, apiproxy_errors.Error, GoogleAPIError, GoogleAuthError


def _sweep_outbox(max_seconds: float) -> int:
    """Send the tasks of committed transactions that wait for Cloud Tasks; return 1 if one could not be sent."""
    from deferred_middleware.config.process import current_hooks, current_settings
    from deferred_middleware.execution.sweeping import Sweeper

    sweeper = Sweeper.needed(current_settings(), current_hooks())
    if sweeper is None:
        return 0
    report = sweeper.sweep(max_seconds=max_seconds)
    print_line(f"{count(report.sent, 'transactional task')} sent to Cloud Tasks.")
    if report.failed:
        print_error(f"{count(report.failed, 'transactional task')} could not be sent; the log says why.")
    return 1 if report.failed else 0


def call_function(arguments: argparse.Namespace) -> int:
    """Enqueue a call of the function with the arguments; return the exit status."""
    from deferred_middleware.config.process import current_settings

    if "API_HOST" not in os.environ and not current_settings().uses_cloud_tasks:
        environ = _environ_of_server(arguments.data_dir)
        # The package has read its settings from this process's environment already, so it starts again.
        command = [sys.executable, "-m", "deferred_middleware", *sys.argv[1:]]
        sys.stdout.flush()
        os.execve(sys.executable, command, environ)
    from deferred_middleware.errors.sdk_types import apiproxy_errors, taskqueue

    connect_process()
    function = _function(arguments.function)
    args, kwargs = _arguments(arguments.arguments)
    options = {
        "_queue": arguments.queue,
        "_countdown": arguments.countdown,
        "_name": arguments.name,
        "_target": arguments.target,
    }
    try:
        from deferred_middleware import defer

        task = defer(function, *args, **kwargs, **{name: value for name, value in options.items() if value is not None})
    except (DeferredError, taskqueue.Error, apiproxy_errors.Error) as error:
        raise ServerError(f"{arguments.function} was not enqueued: {error or type(error).__name__}") from error
    print_line(f"{arguments.function} is enqueued as {task.name} in queue {task.queue_name}.")
    return 0


def exec_command(arguments: argparse.Namespace) -> int:
    """Replace this process by a command that has the environment of the local server's apps."""
    words = [arguments.program, *arguments.words]
    environ = _environ_of_server(arguments.data_dir)
    sys.stdout.flush()
    try:
        os.execvpe(words[0], words, environ)
    except OSError as error:
        raise ServerError(f"{words[0]} can't be started: {error.strerror}.") from error


def _environ_of_server(data_dir: Path) -> dict[str, str]:
    """Return this process's environment with what connects it to the local server."""
    server = read_server_file(data_dir / SERVER_FILE)
    if server is None:
        raise NotRunningError(
            f"No server is running on {data_dir}; start it with 'deferred-middleware serve', or give its --data-dir."
        )
    return {**os.environ, **server.environ}


def _function(name: str) -> Callable[..., object]:
    """Return the function ``module:function``, found from the current directory first."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ServerError(f"Give the function as MODULE:FUNCTION, such as shop.mail:send_welcome; got {name!r}.")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ServerError(f"{name}: {error}; run the command in the app's folder.") from error
    except Exception as error:
        raise ServerError(f"{name}: importing {module} raised {type(error).__name__}: {text_of(error)}.") from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise ServerError(f"{name}: {error}.") from error
    if not callable(found):
        raise ServerError(f"{name} can't be called: it is {shortened(found)}.")
    return found  # type: ignore[no-any-return] # it is callable


def _arguments(words: Sequence[str]) -> tuple[list[object], dict[str, object]]:
    """Return positional and keyword arguments. A word that is no literal of Python is a text."""
    args: list[object] = []
    kwargs: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name.isidentifier():
            kwargs[name] = _value(value)
        else:
            args.append(_value(word))
    return args, kwargs


def _value(word: str) -> object:
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return word


def _add_replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a file with lines of the log, or - for standard input")
    parser.add_argument("--queue", metavar="NAME", help="the queue to enqueue to (default: the task's own)")
    parser.add_argument(
        "--target", help="the service, or version.service, that runs the tasks (default: the one that ran them)"
    )


def _add_call_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("function", metavar="MODULE:FUNCTION", help="the function, such as shop.mail:send_welcome")
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="ARG",
        help="an argument, or NAME=ARG: a literal of Python, such as 42, or else a text; options come before it, or "
        "after it from -- on",
    )
    parser.add_argument("--queue", metavar="NAME", help="the queue (default: the app's setting)")
    parser.add_argument("--countdown", type=float, metavar="SECONDS", help="run it after this time")
    parser.add_argument("--name", help="the task's name")
    parser.add_argument("--target", help="the service, or version.service, that runs it")
    _add_data_dir(parser)


def _add_exec_arguments(parser: argparse.ArgumentParser) -> None:
    _add_data_dir(parser)
    parser.add_argument("program", metavar="COMMAND", help="the program")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="ARG", help="its arguments and options")


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(".deferred"),
        metavar="DIRECTORY",
        help="the data directory of the local server (default: %(default)s)",
    )


def _add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=300.0,
        help="stop after this many seconds, even if expired payloads are left (default: %(default)g)",
    )


COMMANDS = (
    Command(
        name="call",
        summary="enqueue a call of a function",
        description="Enqueue a call of a function of the app that the local server runs. The function's module is "
        "imported here, from the current directory first. If API_HOST is set, or Cloud Tasks is selected, "
        "the environment selects the engine instead.",
        examples=(
            "deferred-middleware call main:send_welcome ann",
            "deferred-middleware call --queue mail --countdown 60 shop.mail:send 42 subject='Hello there'",
        ),
        add_arguments=_add_call_arguments,
        run=call_function,
    ),
    Command(
        name="exec",
        summary="run a command in the environment of the app",
        description="Run a command that is connected to the local server as its default service is: its datastore, "
        "its task queue and its secret key. A program that uses Django's settings can then defer calls. Any other "
        "program wraps an app with wrap_wsgi_app, and makes requests of it.",
        examples=(
            "deferred-middleware exec python manage.py shell",
            "deferred-middleware exec --data-dir data python manage.py send_invoices",
        ),
        add_arguments=_add_exec_arguments,
        run=exec_command,
    ),
    Command(
        name="replay",
        summary="enqueue dead letters again, from lines of the log",
        description="Read the lines that the log has for dead letters, verify the signature of each with "
        "DEFERRED_SECRET_KEYS, and enqueue its task again. The environment selects the engine: Cloud Tasks with "
        "DEFERRED_ENGINE=cloud-tasks, or the local server with the variables that 'serve' prints for an "
        "app that runs elsewhere. In an app, call deferred_middleware.execution.dead_letters.replay() instead.",
        examples=(
            "deferred-middleware replay log.txt",
            "deferred-middleware replay --queue default - < log.txt",
        ),
        add_arguments=_add_replay_arguments,
        run=replay_dead_letters,
    ),
    Command(
        name="sweep",
        summary="remove expired payloads from the datastore, and send transactional tasks",
        description="Remove expired payloads, which were too large for their task, and expired receipts of such "
        "payloads from the datastore. If Cloud Tasks is selected, also send the tasks of committed transactions that "
        "could not be sent before. The environment selects the datastore: for the "
        "local server set API_HOST, "
        "API_PORT and HTTP_X_APPENGINE_API_TICKET. On App Engine, call deferred_middleware.wire.overflow.sweep() in a "
        "handler that cron.yaml calls.",
        examples=("deferred-middleware sweep --max-seconds 60",),
        add_arguments=_add_sweep_arguments,
        run=sweep_datastore,
    ),
)

"""The ``deferred-middleware`` command line: its commands, and how it reports errors.

    deferred-middleware serve main:app --service default --service background

An error is one sentence on standard error, and the exit status is 1, or 2 for arguments that argparse rejects. With
``--traceback`` the traceback comes first. Operations documents the further exit statuses of single commands.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from deferred_middleware import __version__
from deferred_middleware.cli import check, completion, drain, maintenance, queues, serve, tasks
from deferred_middleware.cli.command import PROGRAM, CommandParser
from deferred_middleware.cli.output import print_error
from deferred_middleware.cli.reports import cron, failures, functions, queue_yaml
from deferred_middleware.errors import ServerError

COMMANDS = (
    *serve.COMMANDS,
    *tasks.COMMANDS,
    *queues.COMMANDS,
    *failures.COMMANDS,
    *functions.COMMANDS,
    *queue_yaml.COMMANDS,
    *cron.COMMANDS,
    *drain.COMMANDS,
    *check.COMMANDS,
    *maintenance.COMMANDS,
    *completion.COMMANDS,
)
"""Every command, in the order of ``--help``."""

_PIPE_CLOSED = 128 + signal.SIGPIPE
_INTERRUPTED = 128 + signal.SIGINT  # the status that a shell reports for a command that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, by default that of the process, and return the exit status."""
    _escape_what_cannot_be_encoded()
    arguments, unknown = _make_parser().parse_known_args(argv)
    if unknown:
        arguments.command_parser.refuse(unknown)
    try:
        return int(arguments.run_command(arguments))
    except ServerError as error:
        if arguments.traceback:
            app_traceback = getattr(error, "app_traceback", "")
            print_error((app_traceback or traceback.format_exc()).rstrip("\n"))
        print_error(f"{PROGRAM}: {error}")
        return int(getattr(error, "exit_status", 1))
    except BrokenPipeError:
        # The reader of the output, such as `head`, closed the pipe. Python would write the rest of the buffer at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        # Once the server runs, the supervisor handles the signal.
        return _INTERRUPTED


def _escape_what_cannot_be_encoded() -> None:
    """Have characters that the terminal's encoding does not have written as escapes, such as in an ASCII locale."""
    for stream in (sys.stdout, sys.stderr):
        # What stands in for a stream, such as in a test, may have no encoding.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _make_parser() -> CommandParser:
    parser = CommandParser(prog=PROGRAM, description="Run Python calls later, on App Engine and on your own machine.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser

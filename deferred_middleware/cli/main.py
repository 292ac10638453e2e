"""The ``deferred-middleware`` command line: which commands there are, and how their errors are told.

    deferred-middleware serve main:app --service default --service background

What goes wrong is told in one sentence on standard error, with exit status 1 (2 for arguments that argparse refuses);
``--traceback`` adds where it came from.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from deferred_middleware import __version__
from deferred_middleware.cli import (
    check,
    delete,
    drain,
    forget,
    pause,
    purge,
    queues,
    replay,
    resume,
    retry,
    run,
    serve,
    show,
    sweep,
    tasks,
)
from deferred_middleware.errors import ServerError

PROGRAM = "deferred-middleware"

_COMMANDS = (serve, queues, tasks, show, run, retry, delete, pause, resume, purge, drain, forget, check, replay, sweep)
_PIPE_CLOSED = 128 + signal.SIGPIPE
_INTERRUPTED = 128 + signal.SIGINT  # what a shell gives a command that Ctrl-C ended


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, by default that of the process, and return the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except ServerError as error:
        if arguments.traceback:
            app_traceback = getattr(error, "app_traceback", "")
            sys.stderr.write(app_traceback or traceback.format_exc())
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return int(getattr(error, "exit_status", 1))
    except BrokenPipeError:
        # Whoever read the output (head, say) has had enough. What is left of it would be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        # Before the supervisor handles signals there is nothing to stop.
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Run Python calls later, on App Engine and on your own machine."
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        subparser = command.add_parser(commands)
        subparser.add_argument("--traceback", action="store_true", help="show where an error came from")
        subparser.set_defaults(run=command.run)
    return parser

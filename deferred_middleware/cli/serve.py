"""``deferred-middleware serve``: run an app, its task queue and the other App Engine APIs on this machine."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
from pathlib import Path
from typing import Final

from deferred_middleware.cli.command import Command
from deferred_middleware.errors import ServerError
from deferred_middleware.errors.loggers import log_to_terminal
from deferred_middleware.server.config.data_dir import DataDirectory
from deferred_middleware.server.config.served import DEFAULT_SERVICE, Served, parse_served
from deferred_middleware.server.first_process import run_below_first_process

# The process ID of a container's first process.
_FIRST_PROCESS = 1

logger: Final = logging.getLogger(__name__)


def serve_apps(arguments: argparse.Namespace) -> int:
    """Serve until a signal stops it; return the exit status. Raises :class:`ServerError` if it can't start."""
    if os.getpid() == _FIRST_PROCESS:
        return run_below_first_process(lambda: _serve(arguments))
    return _serve(arguments)


def _serve(arguments: argparse.Namespace) -> int:
    served = parse_served(arguments.apps, arguments.services, remote=arguments.remote_services)
    if arguments.reload:
        _check_reload(served)
    elif arguments.reload_include:
        raise ServerError("--reload-include says which files --reload watches; add --reload.")
    log_to_terminal("[queue] %(levelname)s %(name)s: %(message)s")
    # Importing the server takes half a second. A data directory that another server uses is reported before that.
    with DataDirectory(arguments.data_dir) as data_dir:
        for note in data_dir.notes:
            logger.warning("%s", note)
        return _run_supervisor(arguments, served)


def _check_reload(served: Served) -> None:
    if not served.apps:
        raise ServerError("--reload is for apps that the server runs itself; give an APP, or leave --reload out.")
    if importlib.util.find_spec("watchfiles") is None:
        raise ServerError(
            "--reload needs the packages of the extra 'reload': pip install 'deferred_middleware[reload]'."
        )


def _run_supervisor(arguments: argparse.Namespace, served: Served) -> int:
    try:
        from deferred_middleware.server.admin.web.traceback_view import editor_template
        from deferred_middleware.server.config.served import ServeConfig
        from deferred_middleware.server.supervisor import Supervisor
    except ModuleNotFoundError as error:
        if error.name not in ("waitress", "jinja2"):
            raise
        raise ServerError(
            "The local server needs the packages of the extra 'server': pip install 'deferred_middleware[server]'."
        ) from error
    config = ServeConfig(
        served=served,
        host=arguments.host,
        port=arguments.port,
        admin_host=arguments.admin_host,
        admin_port=arguments.admin_port,
        allowed_hosts=arguments.allowed_hosts,
        data_dir=arguments.data_dir,
        threads=arguments.threads,
        tombstone_days=arguments.tombstone_days,
        history_days=arguments.history_days,
        history_tasks=arguments.history_tasks,
        queue_yaml=arguments.queue_yaml,
        reload=arguments.reload,
        reload_include=arguments.reload_include,
        ready_file=arguments.ready_file,
        task_lines=arguments.task_lines,
        read_only=arguments.read_only,
        editor=editor_template(arguments.editor),
    )
    return Supervisor(config).run()


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{port} is not a port from 0 to 65535")
    return port


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days <= 36_525:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 36525 days")
    return days


def _task_count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return count


def _thread_count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 500:
        raise argparse.ArgumentTypeError(f"{count} is not from 1 to 500 threads")
    return count


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "apps",
        nargs="*",
        metavar="APP",
        help="the WSGI app, as MODULE:CALLABLE, or an app.yaml, which names its service itself; several "
        "MODULE:CALLABLE apps run as the --service options, in their order",
    )
    parser.add_argument(
        "--service",
        action="append",
        dest="services",
        default=[],
        metavar="[VERSION.]NAME[=URL]",
        help="the service that the MODULE:CALLABLE app runs as; with a URL, such as http://127.0.0.1:9000, a service "
        f"whose app already runs there; may be given several times (default: {DEFAULT_SERVICE})",
    )
    parser.add_argument(
        "--remote-services",
        action="store_true",
        help="allow a --service URL on another machine; its tasks travel unencrypted",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address that the services listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8080,
        help="the port of the first service; the other services have the ports after it; 0 means free ports "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--admin-host", default="127.0.0.1", help="the address that the queue process listens on (default: %(default)s)"
    )
    parser.add_argument(
        "--admin-port",
        type=_port,
        default=8000,
        help="the port of the queue process; 0 means a free port (default: %(default)s)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        dest="allowed_hosts",
        default=[],
        metavar="NAME",
        help="another host name for the queue process, which rejects requests for other names; may be given several "
        "times",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(".deferred"),
        metavar="DIRECTORY",
        help="where tasks, the datastore and the signing key are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--queue-yaml",
        type=Path,
        metavar="PATH",
        help="the file that configures the queues; its changes are applied at once (default: queue.yaml beside the "
        "app.yaml of the default service, or in the current directory)",
    )
    parser.add_argument(
        "--tombstone-days",
        type=_days,
        default=9.0,
        metavar="DAYS",
        help="how long the name of a finished task stays taken (default: %(default)g)",
    )
    parser.add_argument(
        "--history-days",
        type=_days,
        default=7.0,
        metavar="DAYS",
        help="how long succeeded tasks are kept in the history (default: %(default)g)",
    )
    parser.add_argument(
        "--history-tasks",
        type=_task_count,
        default=10_000,
        metavar="N",
        help="how many succeeded tasks are kept in the history at most (default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=_thread_count,
        default=8,
        metavar="N",
        help="the threads of each service (default: %(default)s)",
    )
    parser.add_argument(
        "--reload",
        action="store_true",
        help="restart the process of a service when Python files or templates in its app's folder change",
    )
    parser.add_argument(
        "--reload-include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="with --reload: other files that count, such as '*.toml' or a folder's name; may be given several times",
    )
    parser.add_argument(
        "--no-task-lines",
        action="store_false",
        dest="task_lines",
        help="don't print a line for each task that ran; log only failures",
    )
    parser.add_argument(
        "--editor",
        default="vscode",
        metavar="NAME",
        help="the editor that the page's links to files open: vscode, pycharm, zed, sublime or another one that the "
        "manual lists, none, or an address with {path} and {line} (default: %(default)s)",
    )
    parser.add_argument(
        "--read-only",
        action="store_true",
        help="refuse every change that a person asks for, on the page, by a command or over the JSON API; the app's "
        "own calls go on",
    )
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help="a file to write when the server is ready: JSON with the addresses of the services",
    )


COMMANDS = (
    Command(
        name="serve",
        summary="run an app, with its task queue, on this machine",
        description="Run an app on this machine: each of its services in its own process, the task queue, and the "
        "other App Engine APIs that they use.",
        examples=(
            "deferred-middleware serve main:app",
            "deferred-middleware serve app.yaml worker/app.yaml --reload",
            "deferred-middleware serve main:app --service default --service background --port 9000",
        ),
        add_arguments=_add_serve_arguments,
        run=serve_apps,
    ),
)

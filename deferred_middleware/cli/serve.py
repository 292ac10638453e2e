"""``deferred-middleware serve`` and ``deferred-middleware emulate``: run the local server.

``serve`` runs an app, its task queue and the other App Engine APIs on this machine. ``emulate`` runs no app: programs
in any language use it in the place of Cloud Tasks.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import os
import re
from pathlib import Path
from typing import Final

from deferred_middleware.cli.command import Command
from deferred_middleware.errors import ServerError
from deferred_middleware.errors.loggers import log_to_terminal
from deferred_middleware.server.config.data_dir import DataDirectory
from deferred_middleware.server.config.served import DEFAULT_SERVICE, Served, parse_emulated, parse_served
from deferred_middleware.server.first_process import run_below_first_process
from deferred_middleware.server.light_start import leave_out_taskqueue_client

# The process ID of a container's first process.
_FIRST_PROCESS = 1

logger: Final = logging.getLogger(__name__)


def serve_apps(arguments: argparse.Namespace) -> int:
    """Serve until a signal stops it; return the exit status. Raises :class:`ServerError` if it can't start."""
    if os.getpid() == _FIRST_PROCESS:
        return run_below_first_process(lambda: _serve(arguments))
    return _serve(arguments)


def emulate_cloud_tasks(arguments: argparse.Namespace) -> int:
    """Answer the Cloud Tasks API until a signal stops it; return the exit status."""
    if os.getpid() == _FIRST_PROCESS:
        return run_below_first_process(lambda: _emulate(arguments))
    return _emulate(arguments)


def _emulate(arguments: argparse.Namespace) -> int:
    served = parse_emulated(arguments.services, remote=arguments.remote_services)
    issuer = arguments.oidc_issuer
    if issuer is not None and not re.fullmatch(r"https?://[^/?#\s]+(/[^?#\s]*)?", issuer):
        raise ServerError(f"--oidc-issuer {issuer}: give a URL such as http://emulator:8123.")
    return _start(arguments, served)


def _serve(arguments: argparse.Namespace) -> int:
    served = parse_served(arguments.apps, arguments.services, remote=arguments.remote_services)
    if arguments.reload:
        _check_reload(served)
    elif arguments.reload_include:
        raise ServerError("--reload-include says which files --reload watches; add --reload.")
    return _start(arguments, served)


def _start(arguments: argparse.Namespace, served: Served) -> int:
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
    leave_out_taskqueue_client()
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
    arguments.editor = editor_template(arguments.editor)
    names = [field.name for field in dataclasses.fields(ServeConfig) if hasattr(arguments, field.name)]
    config = ServeConfig(served=served, **{name: getattr(arguments, name) for name in names})
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


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
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
        "--remote-services",
        action="store_true",
        help="allow a --service URL on another machine; its tasks travel unencrypted",
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
        "--no-task-lines",
        action="store_false",
        dest="task_lines",
        help="don't print a line for each task that ran; log only failures",
    )
    parser.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        help="a file to write when the server is ready: JSON with the addresses of the services",
    )


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
        "--cloud-tasks-port",
        type=_port,
        default=0,
        help="the port of the Cloud Tasks API, on the address of --admin-host; 0 means a free port "
        "(default: %(default)s)",
    )
    _add_common_arguments(parser)


def _add_emulate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(emulate=True)
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address that the API listens on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=_port,
        default=8123,
        help="the port of the API, for gRPC and REST; 0 means a free port (default: %(default)s)",
    )
    parser.add_argument(
        "--queue",
        action="append",
        dest="queues",
        default=[],
        metavar="NAME",
        help="a queue to make at the start if it does not exist, such as projects/my-project/locations/us-central1/"
        "queues/mail; may be given several times",
    )
    parser.add_argument(
        "--service",
        action="append",
        dest="services",
        default=[],
        metavar="[VERSION.]NAME=URL",
        help="where the App Engine targets of a service go, such as default=http://127.0.0.1:8080; may be given "
        "several times",
    )
    parser.add_argument(
        "--oidc-issuer",
        metavar="URL",
        help="the issuer in the OIDC tokens, if clients reach this server by another URL than its own",
    )
    parser.add_argument(
        "--tombstone-days",
        type=_days,
        default=1.0,
        metavar="DAYS",
        help="how long the name of a finished task stays taken (default: %(default)g)",
    )
    _add_common_arguments(parser)


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
    Command(
        name="emulate",
        summary="answer the Cloud Tasks API on this machine, for programs in any language",
        description="Answer the API of Google Cloud Tasks v2 on this machine, over gRPC and REST on one port. Tasks "
        "are kept on disk, and are sent to the URLs that they name. It needs no app.",
        examples=(
            "deferred-middleware emulate --queue projects/my-project/locations/us-central1/queues/mail",
            "deferred-middleware emulate --port 8123 --service default=http://127.0.0.1:8080",
        ),
        add_arguments=_add_emulate_arguments,
        run=emulate_cloud_tasks,
    ),
)

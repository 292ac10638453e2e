"""``deferred-middleware serve``: an app, its task queue and the other App Engine APIs, on this machine."""

from __future__ import annotations

import argparse
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.data_dir import DataDirectory
from deferred_middleware.server.config.served import DEFAULT_SERVICE, Served, parse_served

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers

_logger = logging.getLogger(__name__)


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    serve: argparse.ArgumentParser = commands.add_parser(
        "serve",
        help="serve an app, with its task queue, on this machine",
        description="Serve an app on this machine: its services, each in a process of its own, and the task queue "
        "and the other App Engine APIs that they use.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    serve.add_argument(
        "apps",
        nargs="*",
        metavar="APP",
        help="the WSGI app, as MODULE:CALLABLE, or an app.yaml, which names its service itself; several of the former "
        "are paired with --service, in order",
    )
    serve.add_argument(
        "--service",
        action="append",
        dest="services",
        metavar="[VERSION.]NAME[=URL]",
        help="serve the app, given as MODULE:CALLABLE, as this service, or the app that answers at URL, such as "
        f"http://127.0.0.1:9000; may be given several times (default: {DEFAULT_SERVICE})",
        default=argparse.SUPPRESS,
    )
    serve.add_argument(
        "--remote-services", action="store_true", help="let the URL of a --service be another machine's, unencrypted"
    )
    serve.add_argument("--host", default="127.0.0.1", help="where the services listen")
    serve.add_argument(
        "--port", type=_port, default=8080, help="of the first service; the next ones follow it; 0: free ones"
    )
    serve.add_argument(
        "--admin-port", type=_port, default=8000, help="of the process that keeps the queue; 0: a free one"
    )
    serve.add_argument("--admin-host", default="127.0.0.1", help="where the process that keeps the queue listens")
    serve.add_argument(
        "--allow-host",
        action="append",
        dest="allowed_hosts",
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="another name by which the process that keeps the queue may be called; may be given several times",
    )
    serve.add_argument("--data-dir", type=Path, default=Path(".deferred"), help="where tasks and data are kept")
    serve.add_argument(
        "--queue-yaml",
        type=Path,
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="what configures the queues; followed when it changes (default: queue.yaml beside the app.yaml of the "
        "default service, or in the current directory)",
    )
    serve.add_argument(
        "--tombstone-days", type=_days, default=9.0, help="for how long the name of a task that is over stays taken"
    )
    serve.add_argument(
        "--history-days", type=_days, default=7.0, help="for how long succeeded tasks are kept to be looked at"
    )
    serve.add_argument(
        "--history-tasks", type=_task_count, default=10_000, help="how many succeeded tasks are kept at most"
    )
    serve.add_argument("--threads", type=_thread_count, default=8, help="of each service")
    serve.add_argument(
        "--reload",
        action="store_true",
        help="start the process of a service again when Python files in the folder of its app change",
    )
    serve.add_argument(
        "--ready-file",
        type=Path,
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="written when everything answers: JSON that says where",
    )
    return serve


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it; return the exit status. Raises :class:`ServerError` when it can't start."""
    served = parse_served(arguments.apps, getattr(arguments, "services", ()), remote=arguments.remote_services)
    if arguments.reload:
        _check_reload(served)
    logging.basicConfig(level=logging.INFO, format="[queue] %(levelname)s %(name)s: %(message)s")
    # Before the rest is imported, which takes half a second: who can't have the directory is told at once.
    with DataDirectory(arguments.data_dir) as data_dir:
        for note in data_dir.notes:
            _logger.warning("%s", note)
        return _serve(arguments, served)


def _check_reload(served: Served) -> None:
    if not served.apps:
        raise ServerError("--reload is for apps that the server runs itself; give an APP, or leave it out.")
    if importlib.util.find_spec("watchfiles") is None:
        raise ServerError("--reload needs what the extra 'reload' brings: pip install 'deferred_middleware[reload]'.")


def _serve(arguments: argparse.Namespace, served: Served) -> int:
    try:
        from deferred_middleware.server.config.served import ServeConfig
        from deferred_middleware.server.supervisor import Supervisor
    except ModuleNotFoundError as error:
        if error.name != "waitress":
            raise
        raise ServerError(
            "The local server needs what the extra 'server' brings: pip install 'deferred_middleware[server]'."
        ) from error
    # More calls than threads at a time is load, not something to warn of.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    config = ServeConfig(
        served=served,
        host=arguments.host,
        port=arguments.port,
        admin_host=arguments.admin_host,
        admin_port=arguments.admin_port,
        allowed_hosts=getattr(arguments, "allowed_hosts", ()),
        data_dir=arguments.data_dir,
        threads=arguments.threads,
        tombstone_days=arguments.tombstone_days,
        history_days=arguments.history_days,
        history_tasks=arguments.history_tasks,
        queue_yaml=getattr(arguments, "queue_yaml", None),
        reload=arguments.reload,
        ready_file=getattr(arguments, "ready_file", None),
    )
    return Supervisor(config).run()


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is no port: it takes 0 to 65535")
    return port


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days <= 36_525:
        raise argparse.ArgumentTypeError(f"{text} days: it takes 0 to 36525")
    return days


def _task_count(text: str) -> int:
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} tasks: it takes a number from 0 up")
    return count


def _thread_count(text: str) -> int:
    count = int(text)
    if not 1 <= count <= 500:
        raise argparse.ArgumentTypeError(f"{count} threads: it takes 1 to 500")
    return count

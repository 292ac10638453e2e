"""The API as a part of the local server: its port, its queues, and the tokens of its tasks.

Nothing of it is imported before it is needed. ``serve`` has the port for every app, and an app that never uses it
should not wait for the import, or need the packages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin.controls import NAMES, ControlError, TestControls
from deferred_middleware.server.apps.app_server import AppServer, serving
from deferred_middleware.server.cloud_tasks.call_errors import HTTP_STATUS, ApiCallError, RpcCode
from deferred_middleware.server.cloud_tasks.names import DEFAULT_LOCATION, Home, QueuePath, StoreNames
from deferred_middleware.server.cloud_tasks.port import SharedPort
from deferred_middleware.server.cloud_tasks.tokens import TokenSigner
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.config.virtual_clock import VirtualClock
from deferred_middleware.server.store.records import ClaimedTask
from deferred_middleware.server.store.store import TaskStore

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from deferred_middleware.server.cloud_tasks.queues import CloudQueues

CONTROLS_PREFIX: Final = "/emulator/v1/"

_HTTP_THREADS: Final = 16
_STOP_SECONDS: Final = 1.0
_BACKLOG: Final = 128

logger: Final = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CloudTasksConfig:
    """What the API needs to know.

    ``home`` is the project and location of the app that is served; None if none is. ``allowed_hosts`` are further names
    in the ``Host`` header. With ``for_tests``, the requests of :mod:`~deferred_middleware.server.admin.controls` are
    answered below :data:`CONTROLS_PREFIX`. ``queues`` are made at the start if they do not exist.
    """

    home: Home | None
    data_dir: Path
    issuer: str
    allowed_hosts: Collection[str] = ()
    for_tests: bool = False
    queues: Collection[str] = ()


class CloudTasksService:
    """The API on ``listener``: the tasks of ``store`` in the queues of ``registry``. Any thread may call any method."""

    def __init__(
        self,
        config: CloudTasksConfig,
        listener: socket.socket,
        store: TaskStore,
        registry: QueueRegistry,
        directory: ServiceDirectory,
        wake_scheduler: Callable[[], None],
        clock: VirtualClock,
    ) -> None:
        self.signer: TokenSigner = TokenSigner(config.data_dir, config.issuer)
        self.controls: TestControls = TestControls(
            store, clock, wake_scheduler, forget_queues=self._forget_queues, name_of=self._name_of
        )
        self._config = config
        self._store = store
        self._registry = registry
        self._directory = directory
        self._wake_scheduler = wake_scheduler
        self._clock = clock
        self._names = StoreNames(config.home)
        self._port = SharedPort(listener, self._start_servers)
        # Guards the next one, which is made once.
        self._lock = threading.Lock()
        self._made_queues: CloudQueues | None = None

    def load(self) -> None:
        """Have the queues that clients have made take tasks again, and make those of the command line."""
        if self._config.queues:
            self._make_queues()
        elif self._store.saved_queues.all():
            try:
                self._queues()
            except ModuleNotFoundError as error:
                logger.error("%s Queues that clients have made are not there until then.", _missing(error))

    def start(self) -> None:
        """Begin to answer; in an emulator, with everything loaded."""
        self._port.start()
        if self._config.for_tests:
            self._port.start_servers()

    def stop(self) -> None:
        """Stop answering."""
        self.controls.stop()
        self._port.stop()

    def rewrite(self, task: ClaimedTask) -> ClaimedTask:
        """Return a task with what its queue overrides in its request."""
        queues = self._made_queues
        if queues is None or (target := queues.http_target(task.queue)) is None:
            return task
        from deferred_middleware.server.cloud_tasks.overrides import overridden

        return overridden(task, target)

    def _queues(self) -> CloudQueues:
        with self._lock:
            if self._made_queues is None:
                from deferred_middleware.server.cloud_tasks.queues import CloudQueues

                self._made_queues = CloudQueues(self._store, self._registry, self._names)
            return self._made_queues

    def _make_queues(self) -> None:
        from deferred_middleware.server.cloud_tasks.calls.queue_messages import Queue

        queues = self._queues()
        for name in self._config.queues:
            try:
                path = QueuePath.parse(name)
                if self._names.of(path) not in self._registry:
                    queues.create(path, Queue())
            except ApiCallError as error:
                raise ServerError(f"--queue {name}: {error.message}") from error

    def _start_servers(self) -> _RunningServers:
        try:
            return self._servers()
        except ModuleNotFoundError as error:
            raise ServerError(_missing(error)) from error

    def _servers(self) -> _RunningServers:
        from deferred_middleware.server.cloud_tasks.calls.batch_calls import BatchCalls
        from deferred_middleware.server.cloud_tasks.calls.queue_calls import QueueCalls
        from deferred_middleware.server.cloud_tasks.calls.task_calls import TaskCalls
        from deferred_middleware.server.cloud_tasks.grpc_server import GrpcServer
        from deferred_middleware.server.cloud_tasks.methods import methods_of
        from deferred_middleware.server.cloud_tasks.rest import MAX_BODY_BYTES, RestApi

        queues = self._queues()
        tasks = TaskCalls(self._store, queues, self._directory, self._wake_scheduler, now=self._clock.time)
        location = DEFAULT_LOCATION if self._config.home is None else self._config.home.location
        queue_calls = QueueCalls(self._store, queues, self._wake_scheduler, default_location=location)
        methods = methods_of(tasks, BatchCalls(tasks, queues), queue_calls)
        rest = RestApi(methods, hosts=self._config.allowed_hosts, others=self._other_pages)
        with contextlib.ExitStack() as stack:
            # Not below the data directory: a socket's path may have about 100 characters.
            folder = tempfile.mkdtemp(prefix="deferred-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            http_socket = os.path.join(folder, "http")
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(http_socket)
            listener.listen(_BACKLOG)
            app_server = AppServer(rest, listener.dup(), threads=_HTTP_THREADS, max_body_bytes=MAX_BODY_BYTES)
            stack.enter_context(serving(app_server, thread="cloud-tasks-rest", grace_seconds=_STOP_SECONDS))
            grpc_socket = os.path.join(folder, "grpc")
            grpc_server = GrpcServer(methods, f"unix:{grpc_socket}")
            grpc_server.start()
            stack.callback(grpc_server.stop, _STOP_SECONDS)
            return _RunningServers(grpc_socket, http_socket, stack.pop_all())

    def _other_pages(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer what is not the API: certificates, and requests of tests."""
        from deferred_middleware.server.cloud_tasks.rest import check_caller, error_content, send_json

        path, verb = environ.get("PATH_INFO", ""), environ["REQUEST_METHOD"]
        try:
            check_caller(environ, {name.lower() for name in self._config.allowed_hosts})
            content = self.signer.document(path) if verb in ("GET", "HEAD") else None
            name = path.removeprefix(CONTROLS_PREFIX)
            if content is None and self._config.for_tests and path.startswith(CONTROLS_PREFIX) and name in NAMES:
                content = self.controls.answer(name, None if verb in ("GET", "HEAD") else _json_body(environ))
            if content is None:
                raise ApiCallError(RpcCode.NOT_FOUND, f"Nothing is here: {verb} {path[:200]!r}.")
            status = 200
        except ApiCallError as error:
            status, content = HTTP_STATUS[error.code], error_content(error)
        except ControlError as error:
            problem = ApiCallError(RpcCode.INVALID_ARGUMENT, str(error))
            status, content = HTTP_STATUS[problem.code], error_content(problem)
        return send_json(environ, start_response, status, content)

    def _forget_queues(self) -> None:
        if self._made_queues is not None or self._store.saved_queues.all():
            self._queues().reset()
        if self._config.queues:
            self._make_queues()

    def _name_of(self, given: str) -> str | None:
        """Return the store's name of a queue that is given by it or by its full name."""
        name = given
        if given.startswith("projects/"):
            try:
                name = self._names.of(QueuePath.parse(given))
            except ApiCallError as error:
                raise ControlError(error.message) from error
        return name if name in self._registry or name in self._store.queries.counts() else None


class _RunningServers:
    """The servers behind the port."""

    def __init__(self, grpc_socket: str, http_socket: str, stack: contextlib.ExitStack) -> None:
        self.grpc_socket = grpc_socket
        self.http_socket = http_socket
        self._stack = stack

    def stop(self) -> None:
        """Stop both."""
        self._stack.close()


def _json_body(environ: WSGIEnvironment) -> dict[str, Any]:
    from deferred_middleware.server.cloud_tasks.rest import read_body

    try:
        content = json.loads(read_body(environ) or b"{}")
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ControlError("The body must be a JSON object.")
    return content


def _missing(error: ModuleNotFoundError) -> str:
    return (
        f"The Cloud Tasks API needs the packages of the extra 'server' (no module {error.name}): "
        "pip install 'deferred_middleware[server]'."
    )

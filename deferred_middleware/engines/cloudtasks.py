"""Google Cloud Tasks as the engine: what the SDK's way to it needs, and what it can't do.

With ``APPENGINE_USE_CLOUDTASK_PUSH_QUEUE=true`` the SDK sends push tasks to Cloud Tasks (``api/taskqueue/cloudtask.py``
in appengine-python-standard 3.1.0). Left alone it

* takes the region us-central1 where it finds none, and a project of None;
* runs its calls in threads that keep the environment of the request that started them, so that a call may see no
  project, or another request's; after a fork it waits for threads that are not there;
* knows no emulator.

Here the first is an error, and the others are mended by :func:`adopt`.
"""

from __future__ import annotations

import contextvars
import functools
import os
import re
import threading
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from deferred_middleware.errors import LocationError, SettingsError
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.calls.options import Options

P = ParamSpec("P")
T = TypeVar("T")

ENABLED_VARIABLE: Final = "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE"
EMULATOR_VARIABLE: Final = "CLOUD_TASKS_EMULATOR_HOST"
PROJECT_VARIABLE: Final = "GOOGLE_CLOUD_PROJECT"
REGION_VARIABLES: Final = ("LOCATION_ID", "GAE_LOCATION", "GAE_REGION", "REGION_ID")
"""Where the SDK looks for the region, in its order; after them it asks the metadata server."""
_FALLBACK_VARIABLE: Final = "LOCAL_GCP_REGION"

MAX_TASK_BYTES: Final = protocol.MAX_PUSH_TASK_BYTES - 2048
"""What a task may take as the SDK counts it: Cloud Tasks counts 100 KB of its own message, which names the queue too
(https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#createtaskrequest)."""

_PROJECT: Final = re.compile(r"([a-z0-9.-]+:)?[a-z0-9][a-z0-9-]*")
_REGION: Final = re.compile(r"[a-z]+(-[a-z]+)+[0-9]+")
_ADDRESS: Final = re.compile(r"(?P<plain>http://)?(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})/?")
_MAX_CALLS_AT_ONCE: Final = 100  # as the SDK's own pool


def is_enabled() -> bool:
    """Tell whether the SDK sends push tasks to Cloud Tasks. It looks into ``os.environ`` at each call, and so do we."""
    return os.environ.get(ENABLED_VARIABLE, "").lower() == "true"


def check_location() -> None:
    """Raise :class:`LocationError` unless the project and the region are known for which the SDK makes tasks."""
    project = _without_prefix(os.environ.get(PROJECT_VARIABLE, ""))
    if not _PROJECT.fullmatch(project):
        what = f"it is {project!r}" if project else "it is not set"
        raise LocationError(PROJECT_VARIABLE, f"the project is not known: {what}")
    application = _without_prefix(os.environ.get("GAE_APPLICATION", project))
    if application != project:
        raise LocationError(
            PROJECT_VARIABLE,
            f"the project is doubtful: {PROJECT_VARIABLE} is {project!r}, and GAE_APPLICATION {application!r}",
        )
    from google.appengine.api.taskqueue import cloudtask

    named = {name: cloudtask._normalize_region(os.environ[name]) for name in REGION_VARIABLES if os.environ.get(name)}
    if len(set(named.values())) > 1:
        differing = ", ".join(f"{name} says {region}" for name, region in named.items())
        raise LocationError(REGION_VARIABLES[0], f"the region is doubtful: {differing}")
    if named:
        variable, region = next(iter(named.items()))
    else:
        variable, region = _unnamed_region()
    if region is None:
        raise LocationError(variable, "the region is not known: neither the environment nor the metadata server tells")
    if not _REGION.fullmatch(region):
        raise LocationError(variable, f"the region is doubtful: {region!r} is no location such as europe-west1")


def _unnamed_region() -> tuple[str, str | None]:
    """Return where the region comes from when no variable of the platform's names it, and what it is."""
    from google.appengine.api.taskqueue import cloudtask

    if cloudtask._CACHED_REGION is None and os.environ.get(_FALLBACK_VARIABLE):
        return _FALLBACK_VARIABLE, cloudtask._normalize_region(os.environ[_FALLBACK_VARIABLE])
    if cloudtask._CACHED_REGION is None:
        cloudtask._get_region()  # asks the metadata server, and keeps what that says; its own fallback it doesn't keep
    return REGION_VARIABLES[0], cloudtask._CACHED_REGION


def _without_prefix(project: str) -> str:
    return project.removeprefix("s~").removeprefix("e~")


def unsupported(options: Options) -> list[str]:
    """Return what of ``options`` can't be done by Cloud Tasks, each as a sentence."""
    found = []
    if options.deadline_seconds is not None:
        found.append(
            f"_deadline={options.deadline_seconds:g} is not told to Cloud Tasks by the SDK; an attempt may take as "
            "long as the service's scaling allows, 10 minutes or 24 hours."
        )
    retry_options = options.retry_options
    for name in ("min_backoff_seconds", "max_backoff_seconds", "task_age_limit") if retry_options is not None else ():
        seconds = getattr(retry_options, name)
        if seconds is not None and seconds != int(seconds):
            found.append(f"{name}={seconds:g} in _retry_options loses its fraction: Cloud Tasks counts whole seconds.")
    return found


def emulator() -> str | None:
    """Return the ``host:port`` of the emulator, or None where tasks go to Google.

    The connection is not encrypted, so that it is made to this machine only, unless the address is written with
    ``http://``. Raises :class:`SettingsError`.
    """
    value = os.environ.get(EMULATOR_VARIABLE, "").strip()
    if not value:
        return None
    found = _ADDRESS.fullmatch(value)
    if found is None:
        raise SettingsError(EMULATOR_VARIABLE, value, "host:port, such as localhost:8123")
    host = found["host"]
    if not found["plain"] and not protocol.is_loopback(host):
        raise SettingsError(
            EMULATOR_VARIABLE,
            value,
            f"an address of this machine, for the connection is not encrypted; write http://{host}:{found['port']} to "
            "have it so all the same",
        )
    return f"{host}:{found['port']}"


_adopt_lock = threading.Lock()


def adopt() -> None:
    """Make the SDK's calls to Cloud Tasks run as their callers would, and at the emulator if there is one.

    It is done once in a process, and what a process forks has it too.
    """
    from google.appengine.api.taskqueue import cloudtask

    with _adopt_lock:
        if not isinstance(cloudtask._THREAD_POOL, CallersPool):
            cloudtask._THREAD_POOL = CallersPool(_MAX_CALLS_AT_ONCE)
            # The SDK keeps a client for each process ID, and makes them by these functions.
            cloudtask._get_client = functools.partial(_client, "tasks_v2", cloudtask._get_client)
            cloudtask._get_v2beta3_client = functools.partial(_client, "tasks_v2beta3", cloudtask._get_v2beta3_client)


def _client(api: str, of_the_sdk: Callable[[], Any]) -> Any:
    """Return the client for the emulator, or the SDK's own."""
    address = emulator()
    if address is None:
        return of_the_sdk()
    from google.appengine.api.taskqueue import cloudtask

    return cloudtask._get_cached_client(f"{api} at {address}", functools.partial(_emulator_client, api, address))


def _emulator_client(api: str, address: str) -> Any:
    import importlib

    import grpc

    transports = importlib.import_module(f"google.cloud.{api}.services.cloud_tasks.transports")
    transport = transports.CloudTasksGrpcTransport(channel=grpc.insecure_channel(address), host=address)
    return importlib.import_module(f"google.cloud.{api}").CloudTasksClient(transport=transport)


class CallersPool(futures.Executor):
    """Threads for calls that see the environment and the context of whoever made them, also after a fork."""

    def __init__(self, max_workers: int) -> None:
        self._max_workers = max_workers
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Have no threads yet: at the start, and in a process that was forked from one that had some."""
        self._lock = threading.Lock()
        self._pool: futures.ThreadPoolExecutor | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> futures.Future[T]:
        """Run ``fn`` in one of the threads."""
        from google.appengine.runtime.request_environment import current_request

        install = current_request.CloneRequestEnvironment()
        context = contextvars.copy_context()

        def call() -> T:
            install()
            try:
                return context.run(fn, *args, **kwargs)
            finally:
                current_request.Clear()

        return self._threads().submit(call)

    def _threads(self) -> futures.ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = futures.ThreadPoolExecutor(self._max_workers, "deferred_middleware Cloud Tasks")
            return self._pool

"""How the server stands: its services, and what limits a queue now. The queue process fills these values in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from deferred_middleware.server.config.services import UnknownServiceError
from deferred_middleware.server.store.records import TaskSummary

ServiceState = Literal["up", "starting", "down", "elsewhere"]


@dataclass(frozen=True, kw_only=True)
class ServiceStatus:
    """A service, and its process. ``since`` is when the process began to serve, in seconds since the epoch.

    ``restarts`` counts the starts of its process after the first one. ``running`` tasks of at most ``concurrency`` run
    in it. ``elsewhere`` means that its app is not run by this server, so its state is not known.
    """

    id: str
    url: str
    state: ServiceState
    concurrency: int
    running: int
    pid: int | None = None
    restarts: int = 0
    since: float | None = None


@dataclass(frozen=True, kw_only=True)
class QueueStanding:
    """What limits a queue at this moment, as the scheduler sees it.

    ``in_flight`` tasks are claimed or running. ``tokens`` are those of its rate that are free, None without a rate; the
    next one comes in ``token_seconds``. After a 503, the queue begins nothing for ``slowed_down_seconds``, and then at
    most ``slowed_down_limit`` attempts at a time.
    """

    in_flight: int = 0
    tokens: int | None = None
    token_seconds: float = 0.0
    slowed_down_seconds: float = 0.0
    slowed_down_limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class ServerStanding:
    """Answers how the server stands. ``service_of`` returns the ID of a task's service.

    It raises :class:`UnknownServiceError` if the service is not served here.
    """

    services: Callable[[], Sequence[ServiceStatus]]
    queue: Callable[[str], QueueStanding]
    service_of: Callable[[TaskSummary], str]


def _unknown(task: TaskSummary) -> str:
    raise UnknownServiceError(task.target, [])


NOTHING_RUNS = ServerStanding(services=list, queue=lambda _queue: QueueStanding(), service_of=_unknown)
"""The standing of a server without services and without a scheduler."""

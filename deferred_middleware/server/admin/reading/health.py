"""The health of the server in one line, with reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from deferred_middleware.server.admin.reading.standing import QueueStanding, ServiceStatus

STUCK_SECONDS = 300.0
"""Due tasks that wait longer than this need attention, if nothing stops their queue."""

Level = Literal["good", "attention", "bad"]


@dataclass(frozen=True, kw_only=True)
class Health:
    """How the server does: ``good``, in need of ``attention``, or ``bad``, and why."""

    level: Level
    title: str
    reasons: tuple[str, ...]


def health_of(
    services: Sequence[ServiceStatus],
    queues: Sequence[Mapping[str, Any]],
    standings: Mapping[str, QueueStanding],
    now_usec: int,
) -> Health:
    """Return the health. ``queues`` are as the JSON API lists them, with ``oldest_eta_usec``, the ETA of the oldest."""
    bad: list[str] = []
    attention: list[str] = []
    for service in services:
        if service.state == "down":
            bad.append(f"service {service.id} is down")
        elif service.state == "starting":
            attention.append(f"service {service.id} is starting")
        elif service.restarts:
            attention.append(f"service {service.id} was started {service.restarts + 1} times")
    for queue in queues:
        name = queue["name"]
        standing = standings.get(name)
        waited_seconds = (now_usec - queue["oldest_eta_usec"]) / 1e6 if queue["oldest_eta_usec"] is not None else 0.0
        is_stopped = queue["paused"] or (queue["config"] or {}).get("rate_per_second") == 0
        if queue["paused"]:
            attention.append(f"queue {name} is paused")
        if standing is not None and standing.slowed_down_limit is not None:
            attention.append(f"queue {name} is slowed down by responses with 503")
        if queue["failed"]:
            number = queue["failed"]
            attention.append(f"{number:,} {'task' if number == 1 else 'tasks'} of queue {name} failed for good")
        if waited_seconds > STUCK_SECONDS and queue["due"] and not is_stopped:
            attention.append(f"a task of queue {name} has waited for {waited_seconds / 60:,.0f} min")
    reasons = (*bad, *attention)
    if bad:
        return Health(level="bad", title="Something is broken", reasons=reasons)
    if attention:
        return Health(level="attention", title="Needs a look", reasons=reasons)
    running = len(services)
    return Health(
        level="good",
        title="All is well",
        reasons=(f"{running} {'service runs' if running == 1 else 'services run'}", "nothing has failed for good"),
    )

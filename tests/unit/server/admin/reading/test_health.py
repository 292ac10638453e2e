"""The health of the server: what is good, what needs a look, and what is broken."""

from __future__ import annotations

from typing import Any

import pytest

from deferred_middleware.server.admin.reading.health import health_of
from deferred_middleware.server.admin.reading.standing import QueueStanding, ServiceState, ServiceStatus

NOW = 1_700_000_000_000_000


def service(state: ServiceState = "up", restarts: int = 0) -> ServiceStatus:
    """Return a service."""
    return ServiceStatus(id="worker", url="http://x", state=state, concurrency=6, running=0, restarts=restarts)


def queue(**changes: Any) -> dict[str, Any]:
    """Return a queue as the API lists it."""
    return {"name": "mail", "paused": False, "config": {}, "failed": 0, "due": 0, "oldest_eta_usec": None, **changes}


OLD = NOW - 20 * 60_000_000


@pytest.mark.parametrize(
    ("services", "queues", "standing", "level", "reason"),
    [
        ([service()], [queue()], None, "good", "1 service runs"),
        ([service("elsewhere")], [queue(oldest_eta_usec=NOW + 1)], None, "good", "1 service runs"),
        ([service("down")], [queue()], None, "bad", "service worker is down"),
        ([service("starting")], [queue()], None, "attention", "service worker is starting"),
        ([service(restarts=2)], [queue()], None, "attention", "service worker was started 3 times"),
        ([service()], [queue(paused=True)], None, "attention", "queue mail is paused"),
        ([service()], [queue(failed=1)], None, "attention", "1 task of queue mail failed for good"),
        ([service()], [queue(failed=1200)], None, "attention", "1,200 tasks of queue mail failed for good"),
        ([service()], [queue(due=1, oldest_eta_usec=OLD)], None, "attention", "has waited for 20 min"),
        ([service()], [queue(due=1, oldest_eta_usec=OLD, config={"rate_per_second": 0})], None, "good", "runs"),
        ([service()], [queue()], QueueStanding(slowed_down_limit=1), "attention", "slowed down"),
    ],
)
def test_the_health_has_reasons(
    services: list[ServiceStatus],
    queues: list[dict[str, Any]],
    standing: QueueStanding | None,
    level: str,
    reason: str,
) -> None:
    """The level is that of the worst reason, and the reason is named."""
    health = health_of(services, queues, {"mail": standing} if standing else {}, NOW)

    assert health.level == level
    assert reason in "; ".join(health.reasons)

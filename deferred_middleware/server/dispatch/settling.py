"""What becomes of a task after an attempt: done, tried again, or given up."""

from __future__ import annotations

from deferred_middleware.server.delivery.http_attempt import AttemptResult
from deferred_middleware.server.store.records import AttemptRecord, ClaimedTask, Completion
from deferred_middleware.server.store.retry import RetryPolicy
from deferred_middleware.wire import protocol

# A task may ask for any back-off, but the store's integers end somewhere.
_MAX_BACKOFF_SECONDS = 100 * 366 * 24 * 3600.0


def settle(
    task: ClaimedTask,
    result: AttemptResult,
    policy: RetryPolicy,
    *,
    started_usec: int,
    finished_usec: int,
    service: str,
    quarantined: bool = False,
) -> Completion:
    """Return what becomes of a task after an attempt.

    Any status but 2xx is tried again as long as ``policy`` allows, unless the task is ``quarantined``; a 2xx that says
    it is a permanent failure is not.
    """
    attempts = task.retry_count + 1
    first_attempt_usec = started_usec if task.first_attempt_usec is None else task.first_attempt_usec
    reason = result.reason
    eta_usec = task.eta_usec
    state: str
    if result.status is not None and 200 <= result.status < 300:
        permanent = result.outcome in protocol.DEAD_LETTERS
        state = "failed" if permanent else "succeeded"
        reason = "permanent failure" if permanent else reason
    else:
        if result.status is not None:
            reason = reason or f"status {result.status}"
        # The retry that would follow attempt n is retry n.
        if not quarantined and policy.allows(attempts, (finished_usec - first_attempt_usec) / 1e6):
            state = "ready"
            eta_usec = finished_usec + int(min(_MAX_BACKOFF_SECONDS, policy.backoff_seconds(attempts)) * 1e6)
        else:
            state = "failed"
    return Completion(
        task_id=task.id,
        claim_token=task.claim_token,
        state=state,  # type: ignore[arg-type] # one of the three
        eta_usec=eta_usec,
        first_attempt_usec=first_attempt_usec,
        finished_usec=None if state == "ready" else finished_usec,
        retry_count=attempts,
        execution_count=task.execution_count + (1 if result.http_response else 0),
        previous_response=result.status or 0,
        retry_reason="App Error" if result.http_response else "Instance Unavailable",
        attempt=AttemptRecord(
            number=attempts,
            started_usec=started_usec,
            duration_usec=result.duration_usec,
            status=result.status,
            reason=reason,
            service=service,
            excerpt=result.excerpt,
        ),
    )

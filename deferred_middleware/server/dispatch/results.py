"""What the result of an attempt means: for the task, and for what is known about the tasks that end processes.

These are decisions only. The caller waits for the result, reads the clock, and writes what was decided.
"""

from __future__ import annotations

from collections.abc import Sequence

from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.attempt_result import AttemptResult, ProcessEnd
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.store.records import AttemptRecord, ClaimedTask, Completion, RetryPolicy
from deferred_middleware.server.store.statistics.traceback_text import failure_site
from deferred_middleware.wire import protocol

# A task may ask for any back-off, but the store's integers are limited.
_MAX_BACKOFF_SECONDS = 100 * 366 * 24 * 3600.0
# The previous response of an attempt at an HTTP target that was cut off at its deadline, as recorded from Cloud Tasks.
_TIMEOUT = 504


class ResultRules:
    """Decides what becomes of a task after an attempt, as its queue in ``queues`` and the ``quarantine`` say."""

    def __init__(self, queues: QueueRegistry, quarantine: Quarantine) -> None:
        self._queues = queues
        self._quarantine = quarantine

    def after_attempt(
        self, task: ClaimedTask, service: Service, result: AttemptResult, *, started_usec: int, finished_usec: int
    ) -> Completion:
        """Return what becomes of a task whose app process has outlived the attempt."""
        self._quarantine.attempt_survived(task, service.id)
        return completion_of(
            task,
            result,
            self._policy(task),
            started_usec=started_usec,
            finished_usec=finished_usec,
            service=service.id,
        )

    def after_death(
        self,
        task: ClaimedTask,
        service: Service,
        result: AttemptResult,
        end: ProcessEnd | None,
        earlier: Sequence[AttemptRecord],
        *,
        started_usec: int,
        finished_usec: int,
    ) -> Completion | None:
        """Return what becomes of a task whose app process ended during the attempt; None: release the task.

        ``end`` is None when the service runs elsewhere. ``earlier`` are the task's attempts so far, oldest first.
        """
        if end is not None and end.intended:
            # This is no failure of the task, and doesn't count as an attempt: nobody knows how it would have ended.
            self._quarantine.attempt_survived(task, service.id)
            return None
        reason, quarantined = self._quarantine.process_died(task, service.id, end, earlier)
        return completion_of(
            task,
            result.because(reason),
            self._policy(task),
            started_usec=started_usec,
            finished_usec=finished_usec,
            service=service.id,
            quarantined=quarantined,
        )

    def undeliverable(self, task: ClaimedTask, reason: str, *, target: str, now_usec: int) -> Completion:
        """Return what becomes of a task that can't be sent, because nothing that is served here has its ``target``."""
        return completion_of(
            task,
            AttemptResult(status=None, duration_usec=0, reason=reason),
            self._policy(task),
            started_usec=now_usec,
            finished_usec=now_usec,
            service=target,
        )

    def _policy(self, task: ClaimedTask) -> RetryPolicy:
        return task.retry or self._queues.config_of(task.queue).retry


def completion_of(
    task: ClaimedTask,
    result: AttemptResult,
    policy: RetryPolicy,
    *,
    started_usec: int,
    finished_usec: int,
    service: str,
    quarantined: bool = False,
) -> Completion:
    """Return the result of an attempt: what becomes of the task, and the record of the attempt.

    After a 2xx the task has succeeded, or has failed if the response reports a permanent failure. After anything else
    it is retried as long as ``policy`` allows, unless it is ``quarantined``.
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
            backoff_seconds = max(policy.backoff_seconds(attempts), result.retry_after_seconds)
            eta_usec = finished_usec + int(min(_MAX_BACKOFF_SECONDS, backoff_seconds) * 1e6)
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
        execution_count=task.execution_count + (1 if _counts(task, result) else 0),
        previous_response=result.status or (_TIMEOUT if task.is_http and result.timed_out else 0),
        retry_reason="" if task.is_http else "App Error" if result.http_response else "Instance Unavailable",
        attempt=AttemptRecord(
            number=attempts,
            started_usec=started_usec,
            duration_usec=result.duration_usec,
            status=result.status,
            reason=reason,
            service=service,
            excerpt=result.excerpt,
            scheduled_usec=task.eta_usec,
        ),
        queue=task.queue,
        url=task.url,
        waited_usec=max(0, started_usec - task.eta_usec),
        failure=None
        if state == "succeeded"
        else failure_site(status=result.status, reason=reason, response=result.excerpt, url=task.url),
    )


def _counts(task: ClaimedTask, result: AttemptResult) -> bool:
    """Return whether an attempt counts as an execution: it got a response, at an HTTP target none that is 5xx.

    Source: https://cloud.google.com/tasks/docs/creating-http-target-tasks#handler ("TaskExecutionCount").
    """
    return result.http_response and not (task.is_http and result.status is not None and 500 <= result.status < 600)

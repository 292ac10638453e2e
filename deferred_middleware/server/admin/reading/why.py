"""Why a task doesn't run: one sentence, from the scheduler's own state. The page and ``show`` have the same."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass

from deferred_middleware.server.admin.reading.standing import QueueStanding, ServiceStatus
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.records import PULL, TaskSummary

MOST_RUNNING = 50
_SHOWN_TASKS = 5
_DAY_SECONDS = 24 * 3600
_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


@dataclass(frozen=True, kw_only=True)
class Circumstances:
    """What the sentence depends on, apart from the task itself.

    ``service`` is the status of its service; None if it is not served here, as ``not_served`` says. ``is_next`` means
    that nothing but its service keeps it from running. ``running`` are IDs of tasks of its queue that run, at most
    :data:`MOST_RUNNING`. ``ahead`` is how many due tasks of its queue and target come before it; ``ahead_is_more`` if
    counting was stopped there.
    """

    now_usec: int
    config: QueueConfig
    paused_by_a_person: bool = False
    standing: QueueStanding
    service: ServiceStatus | None = None
    not_served: str = ""
    is_next: bool = False
    running: Sequence[int] = ()
    ahead: int = 0
    ahead_is_more: bool = False


def why_waiting(task: TaskSummary, found: Circumstances) -> str | None:
    """Return why a task does not run now; None for one that runs or is finished."""
    if task.state == "held":
        return "It is held until the datastore transaction that enqueued it is committed."
    if task.state != "ready":
        return None
    later = task.eta_usec > found.now_usec
    if task.method == PULL:
        if later and task.retry_count:
            return f"A worker has leased it until {_at(task.eta_usec, found.now_usec)}."
        begin = f"From {_at(task.eta_usec, found.now_usec)} on, it waits" if later else "It waits"
        return f"{begin} for a worker to lease it: {task.queue} is a pull queue, whose tasks are never run."
    if found.is_next:
        return f"{_not_serving(found.service) or _fully_used(found.service) or 'It starts at any moment'}."
    if later:
        return _later(task, found.now_usec)
    reason = _stopped(task, found) or _limited(task, found)
    ahead = _ahead(found)
    if reason is None:
        return f"It is due, and waits for its turn{ahead}." if ahead else "It is due, and starts at any moment."
    return f"{reason}{ahead}."


def _later(task: TaskSummary, now_usec: int) -> str:
    at = _at(task.eta_usec, now_usec)
    if task.retry_count:
        return f"Back-off: attempt {task.retry_count} failed, and attempt {task.retry_count + 1} is at {at}."
    return f"Its ETA is {at}."


def _stopped(task: TaskSummary, found: Circumstances) -> str | None:
    """Return what has to be changed before the task runs, without a full stop."""
    if found.paused_by_a_person:
        return f"Queue {task.queue} is paused: 'deferred-middleware resume {task.queue}' starts it again"
    if found.config.paused:
        return f"Queue {task.queue} is paused by its configuration: its rate is 0"
    if found.not_served:
        return found.not_served.rstrip(".")
    return _not_serving(found.service)


def _not_serving(service: ServiceStatus | None) -> str | None:
    if service is not None and service.state == "starting":
        return f"Service {service.id} is starting"
    if service is not None and service.state == "down":
        return f"Service {service.id} is down, and is started again"
    return None


def _fully_used(service: ServiceStatus | None) -> str | None:
    if service is not None and service.running >= service.concurrency:
        number = "1 task" if service.running == 1 else f"{service.running} tasks"
        return f"Service {service.id} runs {number}, which is all that it takes at a time"
    return None


def _limited(task: TaskSummary, found: Circumstances) -> str | None:
    """Return which limit the task waits for, without a full stop."""
    standing, config, service = found.standing, found.config, found.service
    if standing.slowed_down_seconds > 0:
        at = _at(found.now_usec + int(standing.slowed_down_seconds * 1e6), found.now_usec)
        return f"The service answered 503, so queue {task.queue} starts nothing until {at}"
    limits = [
        (limit, what)
        for limit, what in (
            (config.max_concurrent_requests, "may run at the same time"),
            (standing.slowed_down_limit, "may run at the same time after a 503"),
        )
        if limit is not None
    ]
    if limits and standing.in_flight >= min(limits)[0]:
        limit, what = min(limits)
        return f"Only {limit} of queue {task.queue} {what}, and {_in_use(limit, found.running)}"
    if standing.tokens is not None and standing.tokens < 1 and math.isfinite(standing.token_seconds):
        at = _at(found.now_usec + int(standing.token_seconds * 1e6), found.now_usec, precise=True)
        return f"The rate of queue {task.queue} is {rate_text(config)}: its next token comes at {at}"
    return _fully_used(service)


def rate_text(config: QueueConfig) -> str:
    """Return a queue's rate as ``queue.yaml`` writes it, in the unit in which it is a whole number."""
    return "unlimited" if config.rate_per_second is None else per_unit(config.rate_per_second)


def per_unit(rate: float) -> str:
    """Return a rate per second as ``queue.yaml`` writes it; see :func:`rate_text`."""
    for seconds, unit in ((1, "s"), (60, "m"), (3600, "h"), (_DAY_SECONDS, "d")):
        number = rate * seconds
        if abs(number - round(number)) < 1e-6 * max(1.0, number):
            return f"{round(number):,}/{unit}"
    return f"{rate:.4g}/s"


def _in_use(limit: int, running: Sequence[int]) -> str:
    """Say that ``limit`` tasks run; some of them may be about to."""
    starting = max(0, limit - len(running)) if len(running) < MOST_RUNNING else 0
    if not running:
        return f"{starting} {'is' if starting == 1 else 'are'} about to"
    number = limit - starting
    more = f", and {starting} {'is' if starting == 1 else 'are'} about to" if starting else ""
    return f"{number} {'does' if number == 1 else 'do'}{_tasks(running)}{more}"


def _tasks(ids: Sequence[int]) -> str:
    if not ids:
        return ""
    more = f" and {len(ids) - _SHOWN_TASKS} more" if len(ids) > _SHOWN_TASKS else ""
    return f" ({'task' if len(ids) == 1 else 'tasks'} {', '.join(map(str, ids[:_SHOWN_TASKS]))}{more})"


def _ahead(found: Circumstances) -> str:
    if not found.ahead:
        return ""
    number = f"more than {found.ahead:,}" if found.ahead_is_more else f"{found.ahead:,}"
    return f"; {number} other {'task is' if found.ahead == 1 else 'tasks are'} ahead of it"


def _at(usec: int, now_usec: int, *, precise: bool = False) -> str:
    """Return a time of day in the server's time zone, with the date if it is far away, and the distance."""
    seconds = (usec - now_usec) / 1e6
    try:
        when = datetime.datetime.fromtimestamp(usec / 1e6)
    except (OverflowError, ValueError, OSError):
        return "a time in many years"
    day = "%Y-%m-%d " if abs(seconds) >= _DAY_SECONDS else ""
    text = f"{when:{day}%H:%M:%S}"
    if precise and seconds < 10:
        return f"{text}.{when.microsecond // 100_000}, in {max(0.0, seconds):.1f} s"
    return f"{text}, in {_span(seconds)}"


def _span(seconds: float) -> str:
    for unit_seconds, unit in _UNITS:
        if seconds >= 2 * unit_seconds:
            return f"{seconds / unit_seconds:,.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"

"""How an attempt ended, and how an app process ended: the values that the delivery of tasks has in common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from deferred_middleware.server.store.records import ClaimedTask

EXCERPT_BYTES = 4096
"""How much of a response's body is kept."""

_MAX_LOCATION_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """How an attempt ended.

    ``status`` is None if there was no complete HTTP response: the connection failed, the attempt was cut off at its
    dispatch deadline, or the service ended the connection. ``reason`` then says why, for people. ``outcome`` is the
    response's ``X-Deferred-Outcome``, and ``excerpt`` the beginning of its body. ``timed_out`` and
    ``retry_after_seconds``, from the response, are known of HTTP targets only.
    """

    status: int | None
    duration_usec: int
    reason: str | None = None
    outcome: str | None = None
    excerpt: bytes = b""
    timed_out: bool = False
    retry_after_seconds: float = 0.0

    @property
    def http_response(self) -> bool:
        """Whether the attempt counts as an execution."""
        return self.status is not None

    def because(self, reason: str) -> AttemptResult:
        """Return a copy with ``reason`` as its reason."""
        return dataclasses.replace(self, reason=reason)


def redirect_reason(status: int, location: str | None) -> str:
    """Return a text for people about a response that is a redirect."""
    where = "no Location" if location is None else f"Location {location[:_MAX_LOCATION_CHARACTERS]!r}"
    return f"the app redirected it with status {status} and {where}; the queue doesn't follow redirects"


def cut_off(deadline_seconds: float, duration_usec: int) -> AttemptResult:
    """Return the result of an attempt that has lasted until its dispatch deadline."""
    return AttemptResult(
        status=None,
        duration_usec=duration_usec,
        reason=f"cut off: no complete response within its dispatch deadline of {deadline_seconds:g} s",
    )


EventKind = Literal["answered", "cut off", "died", "handed back"]


@dataclass(frozen=True, slots=True)
class AttemptEvent:
    """What has happened to a delivered task.

    ``answered``: the attempt has the ``result``. ``cut off``: it has lasted until its dispatch deadline, and its
    handler still runs; the event of its end follows. ``died``: its process, or the connection to it, ended during the
    attempt. ``handed back``: it has not begun, and won't; the only event without a result.
    """

    kind: EventKind
    task: ClaimedTask
    result: AttemptResult | None = None


@dataclass(frozen=True, kw_only=True)
class ProcessEnd:
    """The end of an app process. ``number`` counts those of its service.

    ``how`` completes a sentence that begins with "it", such as ``was killed by signal 9 (SIGKILL)``. If the end was
    ``intended``, because the code has changed or the server stops, no task has caused it.
    """

    service: str
    number: int
    how: str
    intended: bool

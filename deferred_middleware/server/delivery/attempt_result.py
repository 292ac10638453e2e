"""How an attempt ended, and how an app process ended: the values that the delivery of tasks has in common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

EXCERPT_BYTES = 4096
"""How much of a response's body is kept."""


@dataclass(frozen=True, kw_only=True)
class AttemptResult:
    """How an attempt ended.

    ``status`` is None if there was no complete HTTP response: the connection failed, the attempt was cut off at its
    dispatch deadline, or the service ended the connection. ``reason`` then says why, for people. ``outcome`` is the
    response's ``X-Deferred-Outcome``, and ``excerpt`` the beginning of its body. If a service that runs elsewhere ended
    the connection during the attempt, ``broken_off`` is true.
    """

    status: int | None
    duration_usec: int
    reason: str | None = None
    outcome: str | None = None
    excerpt: bytes = b""
    broken_off: bool = False

    @property
    def http_response(self) -> bool:
        """Whether the attempt counts as an execution."""
        return self.status is not None

    def because(self, reason: str) -> AttemptResult:
        """Return a copy with ``reason`` as its reason."""
        return dataclasses.replace(self, reason=reason)


def cut_off(deadline_seconds: float, duration_usec: int) -> AttemptResult:
    """Return the result of an attempt that has lasted until its dispatch deadline."""
    return AttemptResult(
        status=None,
        duration_usec=duration_usec,
        reason=f"cut off: no complete response within its dispatch deadline of {deadline_seconds:g} s",
    )


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

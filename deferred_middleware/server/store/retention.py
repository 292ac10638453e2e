"""How long the task store remembers what is over."""

from __future__ import annotations

from dataclasses import dataclass

from deferred_middleware.wire import protocol

DAY_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What is kept of finished tasks.

    Succeeded tasks go after ``succeeded_seconds``, and the oldest of them when there are more than ``succeeded_tasks``.
    Dead letters stay until a person retries or deletes them. Of a task's attempts the first and the last are kept, as
    many as ``first_attempts`` and ``last_attempts`` say. A name that an app has chosen for a task is blocked for
    ``tombstone_seconds`` after the task is over. Raises :class:`ValueError` for a negative number, or no last attempt.
    """

    succeeded_seconds: float = 7 * DAY_SECONDS
    succeeded_tasks: int = 10_000
    first_attempts: int = 10
    last_attempts: int = 40
    tombstone_seconds: float = protocol.TOMBSTONE_DAYS * DAY_SECONDS

    def __post_init__(self) -> None:
        for name, minimum in (
            ("succeeded_seconds", 0),
            ("succeeded_tasks", 0),
            ("first_attempts", 0),
            ("last_attempts", 1),
            ("tombstone_seconds", 0),
        ):
            if not getattr(self, name) >= minimum:
                raise ValueError(f"{name}={getattr(self, name)!r} is not a number from {minimum} up")

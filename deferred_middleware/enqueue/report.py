"""The outcome of many calls: :class:`EnqueueReport`, which takes two bytes for each call."""

from __future__ import annotations

import array
import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Final

_UNDECIDED, _ENQUEUED, _EXISTS, _TOMBSTONED, _FIRST_REASON = range(5)
_MAX_REASONS: Final = 1000
_MAX_ERRORS: Final = 100
_TEXTS: Final = {
    _UNDECIDED: "",
    _ENQUEUED: "",
    _EXISTS: "a task of this name waits in its queue",
    _TOMBSTONED: "a task of this name was in its queue before",
}


class EnqueueStatus(enum.Enum):
    """The outcome of one call."""

    ENQUEUED = "enqueued"
    ALREADY_THERE = "already there"
    """A task with the name that the caller gave is, or was, in the queue."""
    FAILED = "failed"
    UNDECIDED = "undecided"
    """Only while the enqueue is under way."""


_STATUSES: Final = {
    _UNDECIDED: EnqueueStatus.UNDECIDED,
    _ENQUEUED: EnqueueStatus.ENQUEUED,
    _EXISTS: EnqueueStatus.ALREADY_THERE,
    _TOMBSTONED: EnqueueStatus.ALREADY_THERE,
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EnqueueResult:
    """The outcome of the call with the given ``index``, counted from 0, and its reason."""

    index: int
    status: EnqueueStatus
    reason: str = ""


class EnqueueReport:
    """The outcome of each call of a :func:`~deferred_middleware.defer_many`, in the order of the calls.

    ``len(report)`` is the number of calls. ``report[i]`` is the outcome of one call as an :class:`EnqueueResult`, and
    iterating over the report yields all of them. The report takes two bytes for each call. It also keeps the first
    1,000 different reasons and the first 100 exceptions.
    """

    def __init__(self) -> None:
        self.enqueued: int = 0
        """How many calls are enqueued."""
        self.already_there: int = 0
        """How many calls were not added because their name is taken or was used."""
        self.failed: int = 0
        """How many calls are not enqueued, or not known to be."""
        self.errors: list[tuple[int, Exception]] = []
        """The first 100 failures: the call's index, and the exception that ``defer`` would have raised."""
        self.stopped_by: BaseException | None = None
        """The exception that the iterable of calls raised, or None. If there is one, later calls were never read."""
        self._codes = array.array("H")
        self._reasons: list[str] = []
        self._numbers: dict[str, int] = {}

    @property
    def ok(self) -> bool:
        """Whether every call is enqueued or already there."""
        return not self.failed and self.stopped_by is None

    def __len__(self) -> int:
        return len(self._codes)

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, index: int) -> EnqueueResult:
        code = self._codes[index]
        index = range(len(self._codes))[index]
        if code in _STATUSES:
            return EnqueueResult(index=index, status=_STATUSES[code], reason=_TEXTS[code])
        return EnqueueResult(index=index, status=EnqueueStatus.FAILED, reason=self._reasons[code - _FIRST_REASON])

    def __iter__(self) -> Iterator[EnqueueResult]:
        for index in range(len(self._codes)):
            yield self[index]

    def failures(self) -> Iterator[EnqueueResult]:
        """Iterate over the calls that failed, in order."""
        return (self[index] for index, code in enumerate(self._codes) if code >= _FIRST_REASON)

    def _next(self) -> int:
        """Append one undecided call, and return its index."""
        self._codes.append(_UNDECIDED)
        return len(self._codes) - 1

    def _succeed(self, indexes: Sequence[int]) -> None:
        for index in indexes:
            self._codes[index] = _ENQUEUED
        self.enqueued += len(indexes)

    def _exists(self, index: int, *, tombstoned: bool) -> None:
        self._codes[index] = _TOMBSTONED if tombstoned else _EXISTS
        self.already_there += 1

    def _fail(self, index: int, error: Exception) -> None:
        reason = _reason(error)
        number = self._numbers.get(reason)
        if number is None:
            if len(self._reasons) >= _MAX_REASONS:
                reason = f"another reason than the first {_MAX_REASONS:,} ones"
                number = self._numbers.get(reason)
            if number is None:
                number = self._numbers[reason] = len(self._reasons)
                self._reasons.append(reason)
        self._codes[index] = _FIRST_REASON + number
        self.failed += 1
        if len(self.errors) < _MAX_ERRORS:
            self.errors.append((index, error))

    def __repr__(self) -> str:
        return (
            f"<EnqueueReport: {len(self):,} calls, {self.enqueued:,} enqueued, "
            f"{self.already_there:,} already there, {self.failed:,} failed>"
        )


def _reason(error: Exception) -> str:
    """Return the part of the error that doesn't depend on the call, so that many failures can share it."""
    queue = getattr(error, "queue", None)
    where = f" (queue {queue!r})" if queue else ""
    return f"{type(error).__name__}: {getattr(error, 'reason', error)}{where}"

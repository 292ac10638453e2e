"""What a list shows of each task besides its row: the beginning of its payload, and how long its last attempt took."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deferred_middleware.server.store.listing.filters import LAST_DURATION

# The tasks are few, so it begins with them.
_EXTRACTS = f"""
    SELECT tasks.id, length(body), CASE WHEN length(body) <= :most THEN body ELSE x'' END, {LAST_DURATION}
    FROM json_each(:ids) AS wanted CROSS JOIN tasks ON tasks.id = wanted.value
    CROSS JOIN payloads ON payloads.task_id = wanted.value"""


@dataclass(frozen=True, kw_only=True)
class Extract:
    """A part of a task: its payload, which is empty if it has more than the bytes that were asked for.

    ``duration_usec`` is that of its last attempt, None before the first one.
    """

    body_bytes: int = 0
    body: bytes = b""
    duration_usec: int | None = None


def extracts(
    read: Callable[[str, dict[str, Any]], list[Any]], task_ids: Sequence[int], *, most_bytes: int
) -> dict[int, Extract]:
    """Return an extract of each task that there is, with one statement."""
    found = read(_EXTRACTS, {"ids": json.dumps(list(task_ids)), "most": most_bytes})
    return {
        task_id: Extract(body_bytes=size, body=body, duration_usec=duration) for task_id, size, body, duration in found
    }

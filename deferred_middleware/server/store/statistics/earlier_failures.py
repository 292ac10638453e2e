"""Functions for SQL that read how tasks failed before the store had groups of failures (``schema-2-to-3.sql``)."""

from __future__ import annotations

import sqlite3

from deferred_middleware.server.store.statistics.traceback_text import FailureSite, failure_site


def create_functions(connection: sqlite3.Connection) -> None:
    """Create ``failure_key`` and ``failure_part``."""
    connection.create_function("failure_key", 4, _key, deterministic=True)
    connection.create_function("failure_part", 5, _part, deterministic=True)


def _site(status: int | None, reason: str | None, excerpt: bytes, url: str) -> FailureSite:
    return failure_site(status=status, reason=reason, response=excerpt, url=url)


def _key(status: int | None, reason: str | None, excerpt: bytes, url: str) -> str:
    return _site(status, reason, excerpt, url).key


def _part(name: str, status: int | None, reason: str | None, excerpt: bytes, url: str) -> str | int:
    part: str | int = getattr(_site(status, reason, excerpt, url), name)
    return part

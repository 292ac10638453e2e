"""The reports in the JSON API: which path has which report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

from deferred_middleware.server.admin.change_log import Actor
from deferred_middleware.server.admin.operation_errors import OperationError, bad
from deferred_middleware.server.admin.reports.reports import Reports

REPORTS = frozenset({"failures", "functions", "series", "queue-yaml", "cron", "datastore", "memcache"})
"""The first parts of the paths."""

_MOST_DIGITS = 19


class Change(Protocol):
    """Makes a change, and returns the answer. ``body`` returns the object in the request's body."""

    def __call__(self, actor: Actor, *, body: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Make the change."""


@dataclass(frozen=True, kw_only=True)
class ReportAnswer:
    """What answers a request: ``change`` for a POST, otherwise ``read``."""

    read: Callable[[], dict[str, Any]] = dict
    change: Change | None = None


def find_report(reports: Reports, parts: Sequence[str], query: Mapping[str, str]) -> ReportAnswer:
    """Return what answers a request for a path below the API's prefix."""
    period = query.get("period", "hour")
    match parts:
        case ["failures"]:
            return _read(
                query,
                reports.failures.groups,
                before=query.get("before", ""),
                solved=query.get("solved") == "1",
            )
        case ["failures", failure]:
            return _read(query, reports.failures.show, failure, before=_number(query, "before"))
        case ["failures", failure, "retry"]:
            return ReportAnswer(change=lambda actor, *, body: reports.failures.retry(actor, failure))
        case ["functions"] if "function" in query:
            return _read(query, reports.figures.function, query["function"], period)
        case ["functions"]:
            return _read(query, reports.figures.functions, period)
        case ["series"]:
            return _read(
                query,
                reports.figures.series,
                period,
                queue=query.get("queue", ""),
                function=query.get("function", ""),
            )
        case ["queue-yaml"]:
            return _read(query, reports.queue_file.show)
        case ["queue-yaml", "preview"]:
            return ReportAnswer(change=lambda _actor, *, body: reports.queue_file.preview(_text(body(), "text")))
        case ["cron"]:
            return _read(query, reports.cron.show)
        case ["cron", number, "run"]:
            return ReportAnswer(change=lambda actor, *, body: reports.cron.run(actor, number, body().get("url")))
        case ["datastore"] if "key" in query:
            return _read(query, reports.data.entity, query["key"])
        case ["datastore"] if "kind" in query:
            return _read(
                query,
                reports.data.entities,
                query["kind"],
                query.get("namespace", ""),
                offset=_number(query, "offset") or 0,
            )
        case ["datastore"]:
            return _read(query, reports.data.kinds, query.get("namespace", ""))
        case ["memcache"]:
            return _read(query, reports.data.memcache, query.get("prefix", ""))
    raise OperationError(HTTPStatus.NOT_FOUND, "no-such-page", f"The API has nothing at {'/'.join(parts)!r}.")


_KNOWN = frozenset({"before", "solved", "period", "queue", "function", "key", "kind", "namespace", "offset", "prefix"})


def _read(query: Mapping[str, str], report: Callable[..., dict[str, Any]], *given: Any, **named: Any) -> ReportAnswer:
    unknown = sorted(set(query) - _KNOWN)
    if unknown:
        raise bad(f"{unknown[0][:40]!r} is not a parameter of reports; these are: {', '.join(sorted(_KNOWN))}.")
    return ReportAnswer(read=partial(report, *given, **named))


def _number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < _MOST_DIGITS):
        raise bad(f"{name}={text[:40]!r} is not a whole number.")
    return int(text)


def _text(body: Mapping[str, Any], name: str) -> str:
    text = body.get(name)
    if not isinstance(text, str):
        raise bad(f"The body must be an object with the text {name!r}.")
    return text

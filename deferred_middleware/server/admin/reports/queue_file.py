"""``queue.yaml``: the file as it is, what each queue's values are and where they come from, and what an edit would do.

The file is only read. Nothing here writes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.reading.why import per_unit
from deferred_middleware.server.config.queue_yaml import QueueYamlError, parse_queue_yaml
from deferred_middleware.server.config.queues import DEFAULT_QUEUE, IMPLICIT_DEFAULT, QueueConfig
from deferred_middleware.server.config.yaml_files import compose, is_mapping, is_sequence, line_of, read_text, value_of
from deferred_middleware.server.store.records import RetryPolicy

# The names of the file's fields, by those of the configuration. The second ones are below retry_parameters.
_FIELDS = {
    "mode": "mode",
    "rate_per_second": "rate",
    "bucket_size": "bucket_size",
    "max_concurrent_requests": "max_concurrent_requests",
    "target": "target",
}
_RETRY_FIELDS = {
    "retry_limit": "task_retry_limit",
    "age_limit_seconds": "task_age_limit",
    "min_backoff_seconds": "min_backoff_seconds",
    "max_backoff_seconds": "max_backoff_seconds",
    "max_doublings": "max_doublings",
}
_HERE = "not listed, so it has no limits here"
_PLATFORM = "App Engine's default"
_ELSEWHERE = "not from the file as it is now"


class QueueFileReports:
    """``path`` is the file, which may not exist. ``queues`` returns the configurations that are in force."""

    def __init__(
        self, operations: Operations, *, path: Path | None, queues: Callable[[], Mapping[str, QueueConfig]]
    ) -> None:
        self._operations = operations
        self._path = path
        self._queues = queues

    def show(self) -> dict[str, Any]:
        """Return the file's text, its error with its line, and the values of each queue that are in force."""
        text, error = self._text()
        parsed: dict[str, QueueConfig] = {}
        warnings: list[str] = []
        if error is None and text is not None:
            parsed, warnings, error = self._parse(text)
        lines = {} if error is not None or text is None else _lines_of(text)
        return {
            "path": None if self._path is None else str(self._path),
            "text": text,
            "error": error,
            "warnings": warnings,
            "queues": [
                _values(config, parsed.get(name), lines.get(name, {}))
                for name, config in sorted(self._queues().items())
            ],
        }

    def preview(self, text: str) -> dict[str, Any]:
        """Return what a text would change if it were the file's, or its error with its line."""
        parsed, warnings, error = self._parse(text)
        if error is not None:
            return {"error": error, "warnings": warnings, "changes": [], "backlogs": []}
        new = {DEFAULT_QUEUE: IMPLICIT_DEFAULT, **parsed}
        return {
            "error": None,
            "warnings": warnings,
            "changes": list(_changes(self._queues(), new)),
            "backlogs": self._backlogs(new),
        }

    def _text(self) -> tuple[str | None, dict[str, Any] | None]:
        if self._path is None or not self._path.exists():
            return None, None
        try:
            return read_text(self._path, QueueYamlError), None
        except QueueYamlError as error:
            return None, _error(error)

    def _parse(self, text: str) -> tuple[dict[str, QueueConfig], list[str], dict[str, Any] | None]:
        warnings: list[str] = []
        try:
            found = parse_queue_yaml(
                text, path="queue.yaml", warn=lambda message, *given: warnings.append(message % given)
            )
        except QueueYamlError as error:
            return {}, warnings, _error(error)
        return {config.name: config for config in found}, warnings, None

    def _backlogs(self, new: Mapping[str, QueueConfig]) -> list[dict[str, Any]]:
        """Return how long the tasks that wait would take, for each queue that has some."""
        old = self._queues()
        figures = self._operations.store.statistics.queues_last_hour()
        paused = self._operations.store.operations.paused()
        backlogs = []
        for name, numbers in sorted(self._operations.store.queries.counts().items()):
            waiting = numbers.get("ready", 0)
            if waiting:
                took = figures[name].took_p50 if name in figures else None
                before = _seconds(old.get(name) or new.get(name), waiting, took)
                # A queue that is removed keeps its last configuration for the tasks that it has.
                after = _seconds(new.get(name) or old.get(name), waiting, took)
                backlogs.append(
                    {
                        "queue": name,
                        "tasks": waiting,
                        "paused": name in paused,
                        "before_seconds": before,
                        "after_seconds": after,
                    }
                )
        return backlogs


def _error(error: QueueYamlError) -> dict[str, Any]:
    return {"line": error.line, "message": str(error)}


def _seconds(config: QueueConfig | None, tasks: int, took_usec: int | None) -> float | None:
    """Return how long a queue takes at least to start so many tasks; None if it starts none, 0 without limits."""
    if config is None or config.mode == "pull":
        return 0.0
    if config.paused:
        return None
    seconds = 0.0
    if config.rate_per_second is not None:
        seconds = max(0, tasks - config.bucket_size) / config.rate_per_second
    if config.max_concurrent_requests is not None and took_usec is not None:
        seconds = max(seconds, tasks / config.max_concurrent_requests * took_usec / 1e6)
    return seconds


def _lines_of(text: str) -> dict[str, dict[str, int]]:
    """Return the lines of the fields of each queue."""
    queues = value_of(compose(text, "queue.yaml", QueueYamlError), "queue")
    lines: dict[str, dict[str, int]] = {}
    for node in queues.value if is_sequence(queues) else ():
        fields = {key.value: line_of(key) for key, _value in node.value}
        retry = value_of(node, "retry_parameters")
        if retry is not None and is_mapping(retry):
            fields.update({key.value: line_of(key) for key, _value in retry.value})
        lines[str(value_of(node, "name").value)] = fields
    return lines


def _values(config: QueueConfig, parsed: QueueConfig | None, lines: Mapping[str, int]) -> dict[str, Any]:
    """Return a queue's values, each with where it comes from."""
    is_implicit = parsed is None and config == IMPLICIT_DEFAULT
    shown = []
    for group, read, names in ((config, parsed, _FIELDS), (config.retry, parsed and parsed.retry, _RETRY_FIELDS)):
        for field, name in names.items():
            value = getattr(group, field)
            if is_implicit:
                origin = _HERE if field in ("rate_per_second", "max_concurrent_requests") else _PLATFORM
            elif read is None or getattr(read, field) != value:
                origin = _ELSEWHERE
            else:
                origin = f"line {lines[name]}" if name in lines else _PLATFORM
            shown.append({"field": name, "value": text_of(field, value), "origin": origin})
    return {"name": config.name, "mode": config.mode, "values": shown}


def text_of(field: str, value: object) -> str:
    """Return a value for people."""
    if value is None:
        return {"target": "that of each task", "rate_per_second": "no limit"}.get(field, "no limit")
    if field == "rate_per_second" and isinstance(value, int | float):
        return "0, which pauses it" if value == 0 else per_unit(value)
    if field.endswith("_seconds"):
        return f"{value:g} s"
    return str(value)


def _changes(old: Mapping[str, QueueConfig], new: Mapping[str, QueueConfig]) -> Any:
    """Yield what differs, in sentences."""
    for name in sorted({*old, *new}):
        if name not in new:
            yield f"Queue {name} is removed: it takes no new tasks; those that it has run with its present values."
        elif name not in old:
            yield f"Queue {name} is new."
        else:
            yield from (f"Queue {name}: {change}" for change in _differences(old[name], new[name]))


def _differences(old: QueueConfig, new: QueueConfig) -> list[str]:
    pairs: tuple[tuple[QueueConfig | RetryPolicy, QueueConfig | RetryPolicy, dict[str, str]], ...] = (
        (old, new, _FIELDS),
        (old.retry, new.retry, _RETRY_FIELDS),
    )
    return [
        f"{names[field.name]} from {text_of(field.name, getattr(before, field.name)).partition(',')[0]}"
        f" to {text_of(field.name, getattr(after, field.name))}."
        for before, after, names in pairs
        for field in dataclasses.fields(before)
        if field.name in names and getattr(before, field.name) != getattr(after, field.name)
    ]

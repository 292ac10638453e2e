"""``cron.yaml``, read by the SDK's own parser, with its schedules.

The fields are described at https://cloud.google.com/appengine/docs/standard/reference/cron-yaml . A wrong entry has a
problem in place of a schedule, so that the others can be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from google.appengine.api import croninfo, yaml_errors

from deferred_middleware.server.config.cron_schedule import Schedule, ScheduleError, parse_schedule
from deferred_middleware.server.config.yaml_files import (
    YamlFileError,
    compose,
    is_sequence,
    line_of,
    problem_of,
    read_text,
    value_of,
)

FILE_NAMES = ("cron.yaml", "cron.yml")
_TAKES = {
    "url": "a path, such as /tasks/clean-up",
    "schedule": "a schedule, such as every 5 minutes",
    "timezone": "a name of a time zone, such as Europe/Berlin",
    "description": "a text of less than 500 characters",
    "target": "a service or a version, in lower case",
    "attempt_deadline": "a number of seconds, such as 60s",
    "retry_parameters": "job_retry_limit, job_age_limit, min_backoff_seconds, max_backoff_seconds, max_doublings",
}


class CronYamlError(YamlFileError):
    """``cron.yaml`` can't be read or is wrong."""


@dataclass(frozen=True, kw_only=True)
class CronEntry:
    """An entry. ``schedule`` is None if its text can't be understood; ``problem`` then says why."""

    number: int
    line: int | None
    url: str
    text: str
    timezone: str
    description: str
    target: str
    schedule: Schedule | None
    problem: str | None = None


def find_cron_yaml(directories: Sequence[Path]) -> Path | None:
    """Return the first ``cron.yaml`` in these directories; None if there is none."""
    for directory in directories:
        for name in FILE_NAMES:
            if (directory / name).is_file():
                return directory / name
    return None


def read_cron_yaml(path: Path) -> list[CronEntry]:
    """Return the entries of a file. Raises :class:`CronYamlError` if it can't be read or is wrong."""
    text = read_text(path, CronYamlError)
    root = compose(text, str(path), CronYamlError)
    if root is None:
        return []
    try:
        info = croninfo.LoadSingleCron(text)
    except yaml_errors.EventError as error:
        raise CronYamlError(str(path), line_of(error.event), f"{problem_of(error, _TAKES)}.") from error
    except (yaml_errors.Error, croninfo.MalformedCronfigurationFile) as error:
        raise CronYamlError(str(path), None, str(error)) from error
    nodes = value_of(root, "cron")
    lines = [line_of(node) for node in nodes.value] if is_sequence(nodes) else []
    return [
        _entry(number, lines[number] if number < len(lines) else None, entry)
        for number, entry in enumerate(info.cron or ())
    ]


def _entry(number: int, line: int | None, entry: croninfo.CronEntry) -> CronEntry:
    timezone = entry.timezone or "UTC"
    schedule, problem = None, None
    try:
        schedule = parse_schedule(entry.schedule or "", timezone)
    except ScheduleError as error:
        problem = str(error)
    return CronEntry(
        number=number,
        line=line,
        url=entry.url or "",
        text=entry.schedule or "",
        timezone=timezone,
        description=entry.description or "",
        target=entry.target or "",
        schedule=schedule,
        problem=problem,
    )

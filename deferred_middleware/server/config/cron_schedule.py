"""The schedules of ``cron.yaml``, such as ``every 5 minutes`` or ``2nd,third mon,wed of march 17:00``.

    schedule = parse_schedule("every monday 09:00", "Europe/Berlin")
    schedule.next_after(datetime.datetime.now(datetime.timezone.utc))

The format: https://cloud.google.com/appengine/docs/standard/scheduling-jobs-with-cron-yaml#formatting_the_schedule .
The SDK's own parser (``google.appengine.cron``) is not in the package ``appengine-python-standard``.
"""

from __future__ import annotations

import calendar
import datetime
import re
import zoneinfo
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

_ORDINALS = {
    name: number
    for number, names in enumerate(
        (("1st", "first"), ("2nd", "second"), ("3rd", "third"), ("4th", "fourth"), ("5th", "fifth")), start=1
    )
    for name in names
}
_DAYS = {
    name: number
    for number, names in enumerate(
        (
            ("mon", "monday"),
            ("tue", "tuesday"),
            ("wed", "wednesday"),
            ("thu", "thursday"),
            ("fri", "friday"),
            ("sat", "saturday"),
            ("sun", "sunday"),
        )
    )
    for name in names
}
_MONTHS = {
    name.lower(): number
    for number in range(1, 13)
    for name in (calendar.month_name[number], calendar.month_abbr[number])
}
_UNITS = {"hours": 3600, "mins": 60, "minutes": 60}
_TIME = r"(?:[01]?[0-9]|2[0-3]):[0-5][0-9]"
_INTERVAL = re.compile(
    rf"every (?P<number>[0-9]{{1,5}}) (?P<unit>hours|mins|minutes)"
    rf"(?: (?:(?P<synchronized>synchronized)|from (?P<start>{_TIME}) to (?P<end>{_TIME})))?"
)
_SPECIFIC = re.compile(
    r"(?:(?P<every>every) )?(?P<first>[a-z0-9,]+)(?: (?P<second>[a-z,]+))??"
    rf"(?: of (?P<months>[a-z,0-9]+(?: quarter)?))? (?P<time>{_TIME})"
)
_SECONDS_A_DAY = 24 * 3600
# Schedules may name a day that comes only once in many years, such as the 5th Monday of February.
_MOST_DAYS = 366 * 29
EXAMPLES = "every 5 minutes, every day 09:00, every monday 09:00, 1st,third monday of month 17:00"


class ScheduleError(ValueError):
    """A schedule can't be understood."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(f"the schedule {text!r} {problem}; schedules look like: {EXAMPLES}")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Again and again, after some time. Without a window, the time counts from the end of the last run."""

    seconds: int
    zone: zoneinfo.ZoneInfo
    start: datetime.time | None = None
    end: datetime.time | None = None

    def next_after(self, moment: datetime.datetime) -> datetime.datetime:
        """Return the next time."""
        if self.start is None or self.end is None:
            return moment + datetime.timedelta(seconds=self.seconds)
        day = moment.astimezone(self.zone).date() - datetime.timedelta(days=1)
        while True:
            found = next((one for one in self._times_of(day) if one > moment), None)
            if found is not None:
                return found
            day += datetime.timedelta(days=1)

    def _times_of(self, day: datetime.date) -> Iterator[datetime.datetime]:
        """Yield the times of the window that begins on a day; it may end on the next day."""
        assert self.start is not None
        assert self.end is not None
        begin = datetime.datetime.combine(day, self.start)
        length = (_of_day(self.end) - _of_day(self.start)) % _SECONDS_A_DAY or _SECONDS_A_DAY
        for seconds in range(0, length + 1 if length < _SECONDS_A_DAY else length, self.seconds):
            local = begin + datetime.timedelta(seconds=seconds)
            yield local.replace(tzinfo=self.zone).astimezone(datetime.timezone.utc)


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """At a time of some days of some months. Without ``weekdays``, ``monthdays`` says which days."""

    time: datetime.time
    months: frozenset[int]
    weekdays: frozenset[int]
    ordinals: frozenset[int]
    monthdays: frozenset[int]
    zone: zoneinfo.ZoneInfo

    def next_after(self, moment: datetime.datetime) -> datetime.datetime | None:
        """Return the next time; None if there is none in many years."""
        first = moment.astimezone(self.zone).date()
        for days in range(_MOST_DAYS):
            day = first + datetime.timedelta(days=days)
            if self._includes(day):
                local = datetime.datetime.combine(day, self.time, tzinfo=self.zone)
                found = local.astimezone(datetime.timezone.utc)
                if found > moment:
                    return found
        return None

    def _includes(self, day: datetime.date) -> bool:
        if day.month not in self.months:
            return False
        if self.monthdays:
            return day.day in self.monthdays
        return day.weekday() in self.weekdays and (day.day - 1) // 7 + 1 in self.ordinals


Schedule = Interval | Calendar


def next_times(schedule: Schedule, after: datetime.datetime, number: int) -> list[datetime.datetime]:
    """Return the next times of a schedule."""

    def times() -> Iterator[datetime.datetime]:
        moment: datetime.datetime | None = after
        while moment is not None and (moment := schedule.next_after(moment)) is not None:
            yield moment

    return list(islice(times(), number))


def parse_schedule(text: str, timezone: str = "UTC") -> Schedule:
    """Return the schedule of a text. Raises :class:`ScheduleError`."""
    try:
        zone = zoneinfo.ZoneInfo(timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ScheduleError(text, f"has an unknown time zone {timezone!r}") from None
    words = " ".join(text.lower().split())
    words = re.sub(r" ?, ?", ",", words)
    found = _INTERVAL.fullmatch(words)
    if found is not None:
        return _interval(text, found, zone)
    found = _SPECIFIC.fullmatch(words)
    if found is None:
        raise ScheduleError(text, "can't be understood")
    return _calendar(text, found, zone)


def _interval(text: str, found: re.Match[str], zone: zoneinfo.ZoneInfo) -> Interval:
    seconds = int(found["number"]) * _UNITS[found["unit"]]
    if not seconds:
        raise ScheduleError(text, "has an interval of nothing")
    if found["start"]:
        return Interval(seconds=seconds, zone=zone, start=_time(found["start"]), end=_time(found["end"]))
    if found["synchronized"]:
        if _SECONDS_A_DAY % seconds:
            raise ScheduleError(text, "is synchronized, but its interval does not divide a day")
        midnight = datetime.time(0)
        return Interval(seconds=seconds, zone=zone, start=midnight, end=midnight)
    return Interval(seconds=seconds, zone=zone)


def _calendar(text: str, found: re.Match[str], zone: zoneinfo.ZoneInfo) -> Calendar:
    first, second = found["first"].split(","), found["second"]
    months = _months(text, found["months"])
    ordinals, monthdays, days = frozenset(range(1, 6)), frozenset[int](), second
    if second is None and not found["every"] and all(one.isdecimal() for one in first):
        if found["months"] is None:
            raise ScheduleError(text, "has days of a month, but no month")
        monthdays = frozenset(map(int, first))
        if not monthdays <= set(range(1, 32)):
            raise ScheduleError(text, "has a day that no month has")
        return Calendar(
            time=_time(found["time"]),
            months=months,
            weekdays=frozenset(),
            ordinals=ordinals,
            monthdays=monthdays,
            zone=zone,
        )
    if second is None:
        days = found["first"]
        if not found["every"]:
            raise ScheduleError(text, "says neither 'every' nor which days of a month")
    else:
        if found["every"] or not set(first) <= set(_ORDINALS):
            raise ScheduleError(text, f"has the words {found['first']!r}, which mean no days")
        ordinals = frozenset(_ORDINALS[one] for one in first)
    named = days.split(",")
    if named == ["day"]:
        weekdays = frozenset(range(7))
    elif set(named) <= set(_DAYS):
        weekdays = frozenset(_DAYS[one] for one in named)
    else:
        raise ScheduleError(text, f"has the words {days!r}, which are no days")
    return Calendar(
        time=_time(found["time"]),
        months=months,
        weekdays=weekdays,
        ordinals=ordinals,
        monthdays=monthdays,
        zone=zone,
    )


def _months(text: str, named: str | None) -> frozenset[int]:
    if named in (None, "month"):
        return frozenset(range(1, 13))
    assert named is not None
    words = named.split()
    if words[-1] == "quarter":
        parts = words[0].split(",") if len(words) == 2 else ["1st"]
        if set(parts) <= set(_ORDINALS) and all(_ORDINALS[part] <= 3 for part in parts):
            return frozenset(month for part in parts for month in range(_ORDINALS[part], 13, 3))
    elif set(named.split(",")) <= set(_MONTHS):
        return frozenset(_MONTHS[part] for part in named.split(","))
    raise ScheduleError(text, f"has the words {named!r}, which are no months")


def _time(text: str) -> datetime.time:
    hours, minutes = text.split(":")
    return datetime.time(int(hours), int(minutes))


def _of_day(time: datetime.time) -> int:
    return time.hour * 3600 + time.minute * 60

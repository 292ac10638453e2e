"""The schedules of cron.yaml."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.config.cron_schedule import ScheduleError, next_times, parse_schedule

UTC = datetime.timezone.utc
# A Saturday.
NOW = datetime.datetime(2026, 11, 28, 8, 5, tzinfo=UTC)


def _next(text: str, number: int = 3, *, timezone: str = "UTC", after: datetime.datetime = NOW) -> list[str]:
    return [f"{time:%Y-%m-%d %H:%M}" for time in next_times(parse_schedule(text, timezone), after, number)]


@pytest.mark.parametrize(
    ("text", "times"),
    [
        ("every 5 minutes", ["2026-11-28 08:10", "2026-11-28 08:15", "2026-11-28 08:20"]),
        ("every 12 hours", ["2026-11-28 20:05", "2026-11-29 08:05", "2026-11-29 20:05"]),
        ("every 30 mins synchronized", ["2026-11-28 08:30", "2026-11-28 09:00", "2026-11-28 09:30"]),
        ("every 8 hours synchronized", ["2026-11-28 16:00", "2026-11-29 00:00", "2026-11-29 08:00"]),
        ("every 45 mins from 09:00 to 10:30", ["2026-11-28 09:00", "2026-11-28 09:45", "2026-11-28 10:30"]),
        ("every 2 hours from 22:00 to 03:00", ["2026-11-28 22:00", "2026-11-29 00:00", "2026-11-29 02:00"]),
        ("every day 00:00", ["2026-11-29 00:00", "2026-11-30 00:00", "2026-12-01 00:00"]),
        ("Every  Monday 9:00", ["2026-11-30 09:00", "2026-12-07 09:00", "2026-12-14 09:00"]),
        ("every mon,thu 09:00", ["2026-11-30 09:00", "2026-12-03 09:00", "2026-12-07 09:00"]),
        ("2nd,third mon,wed,thu of march 17:00", ["2027-03-08 17:00", "2027-03-10 17:00", "2027-03-11 17:00"]),
        ("1st monday of sep,oct,nov 17:00", ["2027-09-06 17:00", "2027-10-04 17:00", "2027-11-01 17:00"]),
        ("1 of jan,april,july,oct 00:00", ["2027-01-01 00:00", "2027-04-01 00:00", "2027-07-01 00:00"]),
        ("1, 15 of month 08:05", ["2026-12-01 08:05", "2026-12-15 08:05", "2027-01-01 08:05"]),
        ("31 of month 00:00", ["2026-12-31 00:00", "2027-01-31 00:00", "2027-03-31 00:00"]),
        ("first day of month 12:00", ["2026-12-01 12:00", "2026-12-02 12:00", "2026-12-03 12:00"]),
        ("fifth sunday of month 12:00", ["2026-11-29 12:00", "2027-01-31 12:00", "2027-05-30 12:00"]),
        ("1 of 1st quarter 00:00", None),
        ("1 of quarter 00:00", ["2027-01-01 00:00", "2027-04-01 00:00", "2027-07-01 00:00"]),
        ("29 of feb 06:00", ["2028-02-29 06:00", "2032-02-29 06:00", "2036-02-29 06:00"]),
        ("30 of feb 06:00", []),
        ("every monday of january 06:00", ["2027-01-04 06:00", "2027-01-11 06:00", "2027-01-18 06:00"]),
    ],
)
def test_next_times(text: str, times: list[str] | None) -> None:
    """Each form of the documentation gives the right times."""
    if times is None:
        times = ["2027-01-01 00:00", "2027-04-01 00:00", "2027-07-01 00:00"]
    assert _next(text) == times


def test_times_are_of_the_time_zone() -> None:
    """A schedule's time is that of its zone, also across the change to summer time."""
    before = datetime.datetime(2027, 3, 27, 0, 0, tzinfo=UTC)
    assert _next("every day 03:30", 2, timezone="Europe/Berlin", after=before) == [
        "2027-03-27 02:30",
        "2027-03-28 01:30",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "every now and then",
        "every minute",
        "every 5 weeks",
        "every 0 minutes",
        "every 7 hours synchronized",
        "every 5 minutes from 25:00 to 26:00",
        "every day",
        "day 09:00",
        "every funday 09:00",
        "1st,tenth monday of month 09:00",
        "1 of octember 09:00",
        "32 of month 09:00",
        "5 09:00",
        "every day 9:0",
        "every 999999999999 minutes",
        "1st monday of 4th quarter 09:00",
    ],
)
def test_wrong_schedules_are_refused(text: str) -> None:
    """What is no schedule gets a sentence with examples."""
    with pytest.raises(ScheduleError, match="schedules look like"):
        parse_schedule(text)


@pytest.mark.parametrize("timezone", ["Mars/Olympus", "../etc/passwd", "\0"])
def test_unknown_time_zones_are_refused(timezone: str) -> None:
    """The error names the zone."""
    with pytest.raises(ScheduleError, match="time zone"):
        parse_schedule("every day 09:00", timezone)


@given(st.text(max_size=60))
def test_any_text_is_a_schedule_or_an_error(text: str) -> None:
    """No text leads to another error."""
    try:
        schedule = parse_schedule(text)
    except ScheduleError:
        return
    assert all(time > NOW for time in next_times(schedule, NOW, 3))


@given(
    st.sampled_from(["every 45 mins from 22:10 to 01:00", "every day 02:30", "every 4 hours synchronized"]),
    st.datetimes(min_value=datetime.datetime(2026, 1, 1), max_value=datetime.datetime(2027, 12, 31)),
)
def test_times_only_grow(text: str, moment: datetime.datetime) -> None:
    """The next times come after the moment and after each other, in any zone."""
    after = moment.replace(tzinfo=UTC)
    times = next_times(parse_schedule(text, "America/New_York"), after, 5)
    assert times == sorted({*times})
    assert times[0] > after

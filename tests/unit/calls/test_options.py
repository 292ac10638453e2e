"""Tests of the options of ``defer``."""

from __future__ import annotations

import datetime
import enum
import math
import time
from typing import Any

import pytest
from google.appengine.api import taskqueue

from deferred_middleware import Call, DeferredWarning, OptionError, call, defer
from deferred_middleware.testing import capture_tasks
from tests.support import sample

UTC = datetime.timezone.utc


def with_options(**options: Any) -> Call:
    """Return a call with options."""
    return call(sample.note, **options)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"_name": ""}, taskqueue.InvalidTaskNameError, "1 to 500"),
        ({"_name": "abc\n"}, taskqueue.InvalidTaskNameError, "1 to 500"),
        ({"_name": "a b"}, taskqueue.InvalidTaskNameError, "1 to 500"),
        ({"_name": "x" * 501}, taskqueue.InvalidTaskNameError, "1 to 500"),
        ({"_name": 5}, taskqueue.InvalidTaskNameError, "1 to 500"),
        ({"_queue": ""}, taskqueue.InvalidQueueNameError, "1 to 100"),
        ({"_queue": "a_b"}, taskqueue.InvalidQueueNameError, "1 to 100"),
        ({"_queue": "a\n"}, taskqueue.InvalidQueueNameError, "1 to 100"),
        ({"_queue": ["a", "b c"]}, taskqueue.InvalidQueueNameError, "1 to 100"),
        ({"_queue": []}, ValueError, "list of queues is empty"),
        ({"_queue": 5}, TypeError, "a queue name"),
        ({"_countdown": math.nan}, ValueError, "expected a number"),
        ({"_countdown": "60"}, TypeError, "number of seconds"),
        ({"_countdown": True}, TypeError, "number of seconds"),
        ({"_countdown": 31 * 86400}, taskqueue.InvalidEtaError, "30 days"),
        ({"_countdown": math.inf}, taskqueue.InvalidEtaError, "30 days"),
        ({"_countdown": 10**400}, taskqueue.InvalidEtaError, "30 days"),
        ({"_countdown": datetime.timedelta(days=31)}, taskqueue.InvalidEtaError, "30 days"),
        ({"_eta": datetime.datetime(2999, 1, 1, tzinfo=UTC)}, taskqueue.InvalidEtaError, "30 days"),
        ({"_eta": datetime.datetime.max.replace(tzinfo=UTC)}, taskqueue.InvalidEtaError, "30 days"),
        ({"_eta": 1700000000}, taskqueue.InvalidEtaError, "datetime"),
        ({"_eta": datetime.date(2030, 1, 1)}, taskqueue.InvalidEtaError, "datetime"),
        ({"_eta": datetime.datetime(2999, 1, 1, tzinfo=UTC), "_countdown": 5}, ValueError, "one of the two"),
        ({"_target": ""}, ValueError, "<service>"),
        ({"_target": "a.b.c.d"}, ValueError, "<service>"),
        ({"_target": "v1.a\n"}, ValueError, "<service>"),
        ({"_target": 5}, TypeError, "<service>"),
        ({"_transactional": "yes"}, TypeError, "True, False"),
        ({"_transactional": True, "_name": "n1"}, ValueError, "can't have a name"),
        ({"_retry_options": {"task_retry_limit": -1}}, taskqueue.InvalidTaskRetryOptionsError, "negative"),
        ({"_retry_options": {"retries": 1}}, TypeError, "retries"),
        ({"_retry_options": 5}, TypeError, "TaskRetryOptions"),
        ({"_headers": [("a", "b")]}, TypeError, "dict"),
        ({"_headers": {"A": 5}}, taskqueue.InvalidTaskError, "strings"),
        ({"_headers": {5: "a"}}, taskqueue.InvalidTaskError, "strings"),
        ({"_headers": {"A": ["b", "c"]}}, taskqueue.InvalidTaskError, "strings"),
        ({"_headers": {"A": "b\r\nEvil: 1"}}, taskqueue.InvalidTaskError, "one line"),
        ({"_headers": {"A": "snow ☃"}}, taskqueue.InvalidTaskError, "Latin-1"),
        ({"_headers": {"A\r\nB": "c"}}, taskqueue.InvalidTaskError, "not a valid header name"),
        ({"_headers": {"": "c"}}, taskqueue.InvalidTaskError, "not a valid header name"),
        ({"_headers": {"x-appengine-taskname": "n"}}, taskqueue.InvalidTaskError, "platform drops"),
        ({"_headers": {"X-Google-Trace": "n"}}, taskqueue.InvalidTaskError, "platform drops"),
        ({"_headers": {"X-Deferred-Outcome": "n"}}, taskqueue.InvalidTaskError, "sets this header itself"),
        ({"_headers": {"X-Deferred-Namespace": "other"}}, taskqueue.InvalidTaskError, "sets this header itself"),
        ({"_headers": {"Host": "evil.example"}}, taskqueue.InvalidTaskError, "_target"),
        ({"_deadline": 14}, taskqueue.InvalidDispatchDeadlineError, "15 to 86,400"),
        ({"_deadline": 86401}, taskqueue.InvalidDispatchDeadlineError, "15 to 86,400"),
        ({"_deadline": "60"}, TypeError, "number of seconds"),
        ({"_url": "tasks"}, taskqueue.InvalidUrlError, "starts with one slash"),
        ({"_url": "http://a.example/b"}, taskqueue.InvalidUrlError, "starts with one slash"),
        ({"_url": "//a.example/b"}, taskqueue.InvalidUrlError, "starts with one slash"),
        ({"_url": "/a?b=c"}, taskqueue.InvalidUrlError, "no query"),
        ({"_url": "/a?"}, taskqueue.InvalidUrlError, "no query"),
        ({"_url": "/a b"}, taskqueue.InvalidUrlError, "percent-encoded"),
        ({"_url": "/a#b"}, taskqueue.InvalidUrlError, "path"),
        ({"_url": 5}, TypeError, "path"),
    ],
)
def test_a_wrong_option_is_an_error_of_both_kinds(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    """The error is both the library's type and the SDK's, and names the option, its value and the solution."""
    with pytest.raises(kind) as caught:
        with_options(**options)

    assert isinstance(caught.value, OptionError)
    assert caught.value.option in options
    assert f"{caught.value.option}=" in str(caught.value)
    assert words in str(caught.value)


def test_a_list_of_queues_is_kept_as_one() -> None:
    """Any iterable of names is a list of queues; a string is one queue."""
    assert with_options(_queue=["a", "b"]).options.queues == ("a", "b")
    assert with_options(_queue=(name for name in "ab")).options.queues == ("a", "b")
    assert with_options(_queue="ab").options.queues == ("ab",)


@pytest.mark.parametrize("countdown", [60, 60.0, datetime.timedelta(minutes=1)])
def test_a_countdown_is_seconds_or_a_timedelta(countdown: object) -> None:
    """A countdown in seconds or as a timedelta becomes an ETA relative to now."""
    before = time.time()

    eta = with_options(_countdown=countdown).options.eta_posix

    assert eta is not None
    assert before + 60 <= eta <= time.time() + 60


def test_a_negative_countdown_is_now_with_a_warning() -> None:
    """A negative countdown counts as now, and warns at the caller's line."""
    with pytest.warns(DeferredWarning, match=r"_countdown=-5 is negative, so the task runs now") as caught:
        call(sample.note, _countdown=-5)

    assert caught[0].filename == __file__


def test_an_aware_eta_is_taken_as_it_is() -> None:
    """An ETA keeps its moment in any time zone."""
    zone = datetime.timezone(datetime.timedelta(hours=-7))
    eta = (datetime.datetime.now(UTC) + datetime.timedelta(days=1)).astimezone(zone)

    assert with_options(_eta=eta).options.eta_posix == pytest.approx(eta.timestamp(), abs=1e-6)


def test_a_naive_eta_is_local_time_with_a_warning() -> None:
    """An ETA without a time zone is local time, as in the SDK, and causes a warning."""
    eta = (datetime.datetime.now() + datetime.timedelta(days=1)).replace(microsecond=0)

    with pytest.warns(DeferredWarning, match="no time zone"):
        made = with_options(_eta=eta)

    assert made.options.eta_posix == time.mktime(eta.timetuple())


def test_a_past_eta_is_now_with_a_warning() -> None:
    """An ETA in the past counts as now, and causes a warning."""
    with pytest.warns(DeferredWarning, match="in the past"):
        made = with_options(_eta=datetime.datetime(2001, 1, 1, tzinfo=UTC))

    assert made.options.eta_posix == pytest.approx(time.time(), abs=5)


def test_thirty_days_are_allowed() -> None:
    """An ETA of exactly 30 days, the platform's limit, is allowed."""
    assert with_options(_countdown=30 * 86400).options.eta_posix is not None


def test_retry_options_may_be_a_dict() -> None:
    """A dict of arguments becomes a TaskRetryOptions; an existing TaskRetryOptions is kept."""
    made = taskqueue.TaskRetryOptions(task_retry_limit=3)

    assert with_options(_retry_options={"task_retry_limit": 2}).options.retry_options.task_retry_limit == 2  # type: ignore[union-attr]
    assert with_options(_retry_options=made).options.retry_options is made


@pytest.mark.parametrize("deadline", [15, 86400, datetime.timedelta(seconds=15)])
def test_the_ends_of_the_dispatch_deadline_are_allowed(deadline: object) -> None:
    """15 seconds and 24 hours are allowed dispatch deadlines."""
    assert with_options(_deadline=deadline).options.deadline_seconds in (15.0, 86400.0)


@pytest.mark.parametrize("target", ["background", "v1.background", "0.v1.background", "V1.background"])
def test_a_target_has_one_to_three_labels(target: str) -> None:
    """A target is a service, optionally with a version and an instance."""
    assert with_options(_target=target).options.target == target


def test_legal_headers_are_kept() -> None:
    """A header with any other name and printable content is kept."""
    headers = {"X-Trace": "a b", "X-Empty": ""}

    assert with_options(_headers=headers).options.headers == headers


class Name(str, enum.Enum):
    """Strings as members of an enum, whose ``str()`` gives the member's name since Python 3.11."""

    QUEUE = "mail"
    OTHER_QUEUE = "slow"
    TASK = "one"
    TARGET = "worker"
    HEADER = "X-Colour"
    VALUE = "red"
    URL = "/somewhere"
    AUTO = "auto"


class Shouting(str):
    """A string whose own ``str()`` and ``format()`` are another text."""

    def __str__(self) -> str:
        return self.upper()

    def __format__(self, spec: str) -> str:
        return self.upper()


class Number(int, enum.Enum):
    """A number as a member of an enum."""

    FOUR = 4


@pytest.mark.parametrize(
    ("option", "given", "field", "value"),
    [
        ("_queue", Name.QUEUE, "queues", ("mail",)),
        ("_queue", [Name.QUEUE, Name.OTHER_QUEUE], "queues", ("mail", "slow")),
        ("_queue", Shouting("mail"), "queues", ("mail",)),
        ("_name", Name.TASK, "name", "one"),
        ("_name", Shouting("one"), "name", "one"),
        ("_target", Name.TARGET, "target", "worker"),
        ("_target", Shouting("worker"), "target", "worker"),
        ("_url", Name.URL, "url", "/somewhere"),
        ("_transactional", Name.AUTO, "transactional", "auto"),
        ("_headers", {Name.HEADER: Name.VALUE}, "headers", {"X-Colour": "red"}),
        ("_headers", {Shouting("X-Colour"): Shouting("red")}, "headers", {"X-Colour": "red"}),
        ("_max_attempts", Number.FOUR, "max_attempts", 4),
    ],
)
def test_the_value_of_a_subclass_of_str_or_int_counts(option: str, given: object, field: str, value: object) -> None:
    """A member of an enum counts as its value, and the value is of the plain type."""
    found = getattr(with_options(**{option: given}).options, field)

    assert found == value
    for text in [*found, *getattr(found, "values", tuple)()] if isinstance(found, (tuple, dict)) else [found]:
        assert type(text) in (str, int)


def test_a_task_with_options_of_an_enum_is_routed_by_their_values() -> None:
    """The queue, the name, the target and the headers of the task are the values."""
    with capture_tasks() as tasks:
        defer(
            sample.note,
            _queue=Name.QUEUE,
            _name=Name.TASK,
            _target=Name.TARGET,
            _headers={Name.HEADER: Name.VALUE},
            _max_attempts=Number.FOUR,
        )

    (found,) = tasks.enqueued
    assert (found.queue, found.name, found.target) == ("mail", "one", "worker")
    assert found.headers["X-Colour"] == "red"
    assert "4" in found.headers.values()

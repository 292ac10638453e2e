"""What the server reads from a queue.yaml, and the errors for a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.appengine.api import queueinfo
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.config.queue_yaml import (
    QueueYamlError,
    find_queue_yaml,
    parse_queue_yaml,
    read_queue_yaml,
)
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.records import RetryPolicy

RETRY_NUMBERS = ("task_retry_limit", "max_doublings")


@pytest.mark.parametrize(
    "line",
    ["max_concurrent_requests: %d", "bucket_size: %d", *(f"retry_parameters: {{{n}: %d}}" for n in RETRY_NUMBERS)],
)
def test_a_number_that_the_api_cannot_take_is_named(line: str) -> None:
    """A number beyond 32 bits, which FetchQueues could not answer with, is an error with its field and its line."""
    field = line.replace("retry_parameters: {", "").partition(":")[0]
    text = "queue:\n- name: mail\n  rate: 5/s\n  " + line + "\n"
    parse_queue_yaml(text % (2**31 - 1), path="queue.yaml")
    for number in (2**31, 999_999_999_999):
        with pytest.raises(QueueYamlError, match=rf"^queue.yaml, line 4: {field}: {number} is too large"):
            parse_queue_yaml(text % number, path="queue.yaml")


def test_every_field_is_understood() -> None:
    """Each field of the platform's reference appears in the configuration."""
    text = """
application: my-app
total_storage_limit: 120M
resume_paused_queues: False
queue:
- name: mail
  rate: 30/m
  bucket_size: 40
  max_concurrent_requests: 10
  target: v2.mailer
  retry_parameters:
    task_retry_limit: 7
    task_age_limit: 2d
    min_backoff_seconds: 10
    max_backoff_seconds: 200.5
    max_doublings: 0
- name: todo
  mode: pull
  acl:
  - user_email: somebody@example.com
"""
    assert parse_queue_yaml(text, path="queue.yaml") == [
        QueueConfig(
            name="mail",
            rate_per_second=0.5,
            bucket_size=40,
            max_concurrent_requests=10,
            target="v2.mailer",
            retry=RetryPolicy(
                retry_limit=7,
                age_limit_seconds=2 * 24 * 3600,
                min_backoff_seconds=10,
                max_backoff_seconds=200.5,
                max_doublings=0,
            ),
        ),
        QueueConfig(name="todo", mode="pull"),
    ]


def test_what_is_left_out_is_the_platforms_default() -> None:
    """A push queue with only a name runs 5 tasks a second, with a bucket of 5 and the default back-off."""
    (queue,) = parse_queue_yaml("queue:\n- name: plain\n", path="queue.yaml")
    assert (queue.rate_per_second, queue.bucket_size, queue.max_concurrent_requests) == (5, 5, None)
    assert queue.retry == RetryPolicy()


def test_a_rate_of_zero_pauses() -> None:
    """A queue with rate 0 is paused; a queue with any other rate is not."""
    zero, slow = parse_queue_yaml("queue:\n- {name: a, rate: 0}\n- {name: b, rate: 1/d}\n", path="queue.yaml")
    assert zero.paused
    assert not slow.paused


def test_a_maximum_below_the_default_minimum_lowers_it() -> None:
    """If only max_backoff_seconds is set, the minimum back-off is at most that, as in the SDK."""
    text = "queue:\n- name: a\n  retry_parameters: {max_backoff_seconds: 0.01}\n"
    (queue,) = parse_queue_yaml(text, path="queue.yaml")
    assert (queue.retry.min_backoff_seconds, queue.retry.max_backoff_seconds) == (0.01, 0.01)


def test_no_queues_are_fine() -> None:
    """A file that lists no queues is valid."""
    assert parse_queue_yaml("queue:\n", path="queue.yaml") == []


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", None, "empty"),
        ("# nothing\n", None, "empty"),
        ("- a\n", 1, "'queue:'"),
        ("queue:\n  name: a\n", 2, "'queue:'"),
        ("queue:\n- a\n", 2, "'queue:'"),
        ("queue: [\n", 2, "it is not YAML"),
        ("queue:\n- name: 'a\n", 3, "it is not YAML"),
        ("queue:\n- name: a\n---\nqueue:\n", 3, "single document"),
        ("queue:\n- name: a\n  rate: 5\n", 3, "rate is '5': it takes a number and a unit, such as 5/s"),
        ("queue:\n- {name: a, rate: 5/x}\n", 2, "rate is '5/x'"),
        ("queue:\n- name: a\n  rte: 5/s\n", 3, "'rte'; the fields of a queue are name, mode, rate"),
        ("queue:\n- name: a\n  rate: 1/s\n  rate: 2/s\n", 4, "Duplicate attribute 'rate'"),
        ("queue:\n- rate: 1/s\n", 3, "Missing required value [name]"),
        ("queue:\n- name: a_b\n", 2, "name is 'a_b': it takes letters"),
        ("queue:\n- name: ''\n", 2, "name is ''"),
        (f"queue:\n- name: {'a' * 101}\n", 2, "up to 100"),
        ("queue:\n- name: a\n- rate: 1/s\n  name: a\n", 4, "queue a is listed twice"),
        ("queue:\n- name: a\n  bucket_size: 0\n", 3, "bucket_size is 0: it takes a whole number, at least 1"),
        ("queue:\n- name: a\n  max_concurrent_requests: many\n", 3, "max_concurrent_requests is 'many'"),
        ("queue:\n- name: a\n  target: A.b\n", 3, "target is 'A.b': it takes [version.]service"),
        ("queue:\n- name: a\n  mode: fetch\n", 3, "mode is 'fetch': it takes push or pull"),
        ("queue:\n- name: a\n  retry_parameters:\n    task_age_limit: 3\n", 4, "such as 2d"),
        ("queue:\n- name: a\n  retry_parameters:\n    task_age_limit: 0s\n", 4, "task_age_limit is '0s'"),
        ("queue:\n- name: a\n  retry_parameters:\n    max_doublings: -1\n", 4, "max_doublings is -1"),
        ("queue:\n- name: a\n  retry_parameters:\n    min_backoff_seconds: .nan\n", 4, "min_backoff_seconds is nan"),
        (
            "queue:\n- name: a\n  retry_parameters:\n    min_backoff_seconds: 5\n    max_backoff_seconds: 1\n",
            5,
            "at least 0 and at least min_backoff_seconds",
        ),
    ],
)
def test_a_mistake_is_told_with_its_line(text: str, line: int | None, said: str) -> None:
    """The error is one sentence with the file, the line and the mistake."""
    with pytest.raises(QueueYamlError) as caught:
        parse_queue_yaml(text, path="some/queue.yaml")
    assert caught.value.line == line
    message = str(caught.value)
    assert message.startswith("some/queue.yaml" + (f", line {line}: " if line else ": "))
    assert said in message
    assert "\n" not in message
    assert message.endswith(".")


def test_a_rate_of_a_pull_queue_is_told_to_mean_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A push-only field in a pull queue is logged as having no effect."""
    (queue,) = parse_queue_yaml("queue:\n- name: a\n  mode: pull\n  rate: 5/s\n", path="queue.yaml")
    assert queue.rate_per_second is None
    assert "queue.yaml, line 4: rate has no effect on a pull queue" in caplog.text


@given(number=st.integers(1, 10_000), tenths=st.none() | st.integers(0, 9), unit=st.sampled_from("smhd"))
def test_rates_are_the_sdks(number: int, tenths: int | None, unit: str) -> None:
    """A rate is parsed as the SDK parses it."""
    rate = f"{number}{'' if tenths is None else f'.{tenths}'}/{unit}"
    (queue,) = parse_queue_yaml(f"queue:\n- name: a\n  rate: {rate}\n", path="queue.yaml")
    assert queue.rate_per_second == queueinfo.ParseRate(rate)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing file and a file in another encoding both raise QueueYamlError."""
    with pytest.raises(QueueYamlError, match="it can't be read: No such file"):
        read_queue_yaml(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9\nqueue:\n")
    with pytest.raises(QueueYamlError, match="not text in UTF-8"):
        read_queue_yaml(tmp_path / "latin.yaml")


def test_the_file_is_looked_for_in_order(tmp_path: Path) -> None:
    """The first directory with a queue.yaml or queue.yml wins; without any, the path is in the first directory."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    assert find_queue_yaml([first, second]) == first / "queue.yaml"
    (second / "queue.yml").touch()
    assert find_queue_yaml([first, second]) == second / "queue.yml"
    (first / "queue.yaml").touch()
    assert find_queue_yaml([first, second]) == first / "queue.yaml"


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("bucket_size", "1.5", 4),
        ("max_concurrent_requests", "true", 4),
        ("task_retry_limit", "1.5", 6),
        ("max_doublings", "false", 6),
        ("task_age_limit", "99999999999999999999d", 6),
        ("task_age_limit", "0d", 6),
        ("task_age_limit", "5x", 6),
        ("min_backoff_seconds", "-1", 6),
    ],
)
def test_the_wrong_field_is_named_among_others(field: str, value: str, line: int) -> None:
    """The error has the field and the line of the wrong value, whatever other fields the queue has."""
    if line == 4:
        text = f"queue:\n- name: mail\n  rate: 5/s\n  {field}: {value}\n  target: worker\n"
    else:
        retry = f"    max_backoff_seconds: 5\n    {field}: {value}\n"
        text = f"queue:\n- name: mail\n  rate: 5/s\n  retry_parameters:\n{retry}"
    with pytest.raises(QueueYamlError, match=rf"^queue.yaml, line {line}: {field}\b"):
        parse_queue_yaml(text, path="queue.yaml")


@pytest.mark.parametrize(
    ("field", "largest", "more", "shown"),
    [
        ("rate", "500/s", "501/s", "500/s"),
        ("rate", "30000/m", "30001/m", "500/s"),
        ("bucket_size", "500", "501", "500"),
        ("max_concurrent_requests", "5000", "5001", "5000"),
    ],
)
def test_more_than_the_platform_takes_is_a_warning(
    field: str, largest: str, more: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A value above App Engine's own limit is used, with a warning that has the field, the line and the limit."""
    text = "queue:\n- name: mail\n  {}: {}\n"
    parse_queue_yaml(text.format(field, largest), path="queue.yaml")
    assert not caplog.records
    parse_queue_yaml(text.format(field, more), path="queue.yaml")
    (record,) = caplog.records
    assert record.getMessage() == f"queue.yaml, line 3: {field} is {more}; App Engine takes at most {shown}."

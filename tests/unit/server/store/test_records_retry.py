"""Back-off and limits of retries."""

from __future__ import annotations

from typing import Any

import pytest
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.api.taskqueue import taskqueue_stub
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.store.records import RetryPolicy

# Multiples of 1/64 second are exact in binary and in microseconds, so the SDK's rounding changes nothing.
_SECONDS = st.integers(1, 640_000).map(lambda number: number / 64)
_RETRIES = st.integers(min_value=1, max_value=5000)


def _sdk_retry(**parameters: float) -> Any:
    task = taskqueue_pb.TaskQueueQueryTasksResponse.Task()
    for name, value in parameters.items():
        setattr(task.retry_parameters, name, value)
    task.retry_parameters.SetInParent()
    return taskqueue_stub.Retry(task, None)


@given(low=_SECONDS, high=_SECONDS, doublings=st.integers(0, 2000), number=_RETRIES)
def test_backoff_is_the_sdks(low: float, high: float, doublings: int, number: int) -> None:
    """Each back-off is the same as that of the SDK's stub."""
    low, high = sorted((low, high))
    policy = RetryPolicy(min_backoff_seconds=low, max_backoff_seconds=high, max_doublings=doublings)
    sdk = _sdk_retry(min_backoff_sec=low, max_backoff_sec=high, max_doublings=doublings)
    expected_seconds = sdk.CalculateBackoffUsec(number) / 1e6
    assert policy.backoff_seconds(number) == pytest.approx(expected_seconds, rel=1e-9, abs=1e-6)


@given(
    limit=st.none() | st.integers(0, 10),
    age_limit=st.none() | st.integers(0, 100),
    number=st.integers(1, 20),
    age=st.integers(0, 200),
)
def test_limits_are_the_sdks(limit: int | None, age_limit: int | None, number: int, age: int) -> None:
    """A retry is allowed exactly if the SDK's stub allows it."""
    policy = RetryPolicy(retry_limit=limit, age_limit_seconds=age_limit)
    parameters = {"retry_limit": limit, "age_limit_sec": age_limit}
    sdk = _sdk_retry(**{name: value for name, value in parameters.items() if value is not None})
    assert policy.allows(number, age) == sdk.CanRetry(number, age * 1_000_000)


@given(number=_RETRIES)
def test_backoff_never_shrinks_and_never_exceeds_its_maximum(number: int) -> None:
    """Each back-off is at least as long as the previous one, and at most the maximum."""
    policy = RetryPolicy()
    assert policy.backoff_seconds(number) <= policy.backoff_seconds(number + 1) <= policy.max_backoff_seconds


def test_the_first_waits_of_the_default_policy() -> None:
    """By default the back-off starts at 0.1 s and doubles up to an hour."""
    policy = RetryPolicy()
    assert [policy.backoff_seconds(number) for number in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert policy.backoff_seconds(1_000_000) == 3600


def test_after_its_doublings_the_wait_grows_linearly() -> None:
    """With two doublings, the back-offs are 1, 2, 4, then 8, 12, 16 seconds."""
    policy = RetryPolicy(min_backoff_seconds=1, max_doublings=2)
    assert [policy.backoff_seconds(number) for number in range(1, 7)] == [1, 2, 4, 8, 12, 16]


def test_either_limit_keeps_a_task_alive() -> None:
    """With both limits, a task is given up only when it exceeds both."""
    policy = RetryPolicy(retry_limit=2, age_limit_seconds=60)
    assert policy.allows(3, 59)
    assert policy.allows(2, 61)
    assert not policy.allows(3, 61)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_values_are_refused(value: float) -> None:
    """A negative or infinite back-off is an error that names the field."""
    with pytest.raises(ValueError, match="min_backoff_seconds"):
        RetryPolicy(min_backoff_seconds=value)


def test_retries_count_from_one() -> None:
    """Retry number 0 raises ValueError."""
    with pytest.raises(ValueError, match="count from 1"):
        RetryPolicy().backoff_seconds(0)

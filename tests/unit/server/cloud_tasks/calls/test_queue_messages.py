"""The message Queue, and the configuration that the scheduler reads."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError
from deferred_middleware.server.cloud_tasks.calls.queue_messages import (
    Queue,
    check_queue,
    config_of,
    fill_defaults,
    fill_routing,
    queue_of,
    target_of,
)
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.records import RetryPolicy


def made(settings: dict[str, Any]) -> Any:
    """Return a queue with these settings."""
    return json_format.ParseDict(settings, Queue())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rateLimits": {"maxDispatchesPerSecond": "NaN"}}, "RateLimits.maxDispatchesPerSecond cannot be negative."),
        ({"rateLimits": {"maxDispatchesPerSecond": "Infinity"}}, "RateLimits.maxDispatchesPerSecond must be less"),
        ({"retryConfig": {"minBackoff": "-1s"}}, "RetryConfig.minBackoff cannot be negative."),
        ({"retryConfig": {"maxBackoff": "-0.5s"}}, "RetryConfig.maxBackoff cannot be negative."),
        ({"retryConfig": {"maxRetryDuration": "-1s"}}, "RetryConfig.maxRetryDuration cannot be negative."),
        ({"retryConfig": {"minBackoff": "3601s"}}, "RetryConfig.minBackoff must be less than or equal to"),
        ({"retryConfig": {"maxBackoff": "0.05s"}}, "RetryConfig.minBackoff must be less than or equal to"),
        ({"stackdriverLoggingConfig": {"samplingRatio": 1.5}}, "StackdriverLoggingConfig.samplingRatio must be"),
        ({"appEngineRoutingOverride": {"service": "a.b"}}, "AppEngineRouting.service is not valid"),
        ({"httpTarget": {"uriOverride": {"host": ""}}}, "UriOverride.host cannot be empty."),
        ({"httpTarget": {"uriOverride": {"port": "65536"}}}, "UriOverride.port must be between"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    """Each limit is checked; a value that is left out has its default."""
    with pytest.raises(ApiCallError) as caught:
        check_queue(made(settings))
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(("seconds", "nanos"), [(1, -1), (-1, 1), (0, 2_000_000_000), (10**13, 0)])
def test_a_duration_that_is_none(seconds: int, nanos: int) -> None:
    """A duration's seconds and nanoseconds have one sign, and bounds."""
    queue = Queue()
    queue.retry_config.min_backoff.seconds, queue.retry_config.min_backoff.nanos = seconds, nanos
    with pytest.raises(ApiCallError, match=r"RetryConfig\.minBackoff is not a valid duration"):
        check_queue(queue)


@pytest.mark.parametrize(("rate", "burst"), [(0.1, 10), (10, 10), (33.3, 34), (500, 100), (0, 100)])
def test_the_burst_size_follows_the_rate(rate: float, burst: int) -> None:
    """The service chooses the burst size, whatever the client says."""
    queue = made({"rateLimits": {"maxDispatchesPerSecond": rate, "maxBurstSize": -5}})
    check_queue(queue)
    fill_defaults(queue)
    assert queue.rate_limits.max_burst_size == burst


@pytest.mark.parametrize(
    ("retry", "policy"),
    [
        ({}, RetryPolicy(retry_limit=99)),
        ({"maxAttempts": -1}, RetryPolicy()),
        ({"maxAttempts": 1}, RetryPolicy(retry_limit=0)),
        (
            {"maxAttempts": 5, "maxRetryDuration": "90s", "minBackoff": "2s", "maxBackoff": "8s", "maxDoublings": 3},
            RetryPolicy(
                retry_limit=4, age_limit_seconds=90, min_backoff_seconds=2, max_backoff_seconds=8, max_doublings=3
            ),
        ),
    ],
)
def test_the_configuration_of_retries(retry: dict[str, Any], policy: RetryPolicy) -> None:
    """An attempt is one more than a retry; -1 is no limit."""
    queue = made({"retryConfig": retry})
    fill_defaults(queue)
    assert config_of(queue, "mail").retry == policy


@pytest.mark.parametrize(
    "config",
    [
        QueueConfig(name="mail"),
        QueueConfig(
            name="mail",
            rate_per_second=7.5,
            bucket_size=10,
            max_concurrent_requests=3,
            target="0.v2.worker",
            retry=RetryPolicy(retry_limit=3, age_limit_seconds=60, min_backoff_seconds=0.25),
        ),
    ],
)
def test_an_entry_as_a_queue_and_back(config: QueueConfig) -> None:
    """What a client sees of an entry of queue.yaml has the same effect if the client sends it back."""
    again = config_of(queue_of(config), "mail")
    assert again.retry == config.retry
    assert again.target == config.target
    assert again.rate_per_second == (config.rate_per_second or 500)


@pytest.mark.parametrize(
    ("routing", "target"),
    [
        ({}, ""),
        ({"service": "worker"}, "worker"),
        ({"service": "worker", "version": "v1"}, "v1.worker"),
        ({"service": "worker", "version": "v1", "instance": "0"}, "0.v1.worker"),
        ({"version": "v1"}, "v1.default"),
    ],
)
def test_a_routing_is_a_target(routing: dict[str, str], target: str) -> None:
    """A routing names a target, and a target a routing."""
    message = json_format.ParseDict(routing, type(Queue().app_engine_routing_override)())
    assert target_of(message) == target
    filled = type(message)()
    fill_routing(filled, target)
    assert target_of(filled) == target

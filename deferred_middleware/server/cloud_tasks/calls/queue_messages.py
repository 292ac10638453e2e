"""The message ``Queue`` of the API, its defaults and its limits, and the configuration that the scheduler reads.

Defaults and limits: https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#queue ,
https://cloud.google.com/tasks/docs/configuring-queues , and where the letters of
:mod:`~deferred_middleware.server.cloud_tasks.call_errors` say so, what was recorded.
"""

from __future__ import annotations

import math
from typing import Any, Final

from google.cloud import tasks_v2
from google.protobuf import duration_pb2

from deferred_middleware.server.cloud_tasks.call_errors import invalid
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.records import RetryPolicy

Queue: Final[Any] = tasks_v2.Queue.pb()

MAX_RATE: Final = 500.0
MAX_CONCURRENT: Final = 5_000
DEFAULT_CONCURRENT: Final = 1_000
DEFAULT_MAX_ATTEMPTS: Final = 100
DEFAULT_MAX_DOUBLINGS: Final = 16
DEFAULT_MIN_BACKOFF_SECONDS: Final = 0.1
DEFAULT_MAX_BACKOFF_SECONDS: Final = 3600.0

_BURST: Final = (10, 100)
_MAX_NANOS: Final = 999_999_999
_MAX_SECONDS: Final = 315_576_000_000
"""The range of a Duration (``google/protobuf/duration.proto``)."""


def fill_defaults(queue: Any) -> None:
    """Fill in what the service chooses for a queue that leaves it open. The burst size is never the client's [G]."""
    limits = queue.rate_limits
    limits.max_dispatches_per_second = limits.max_dispatches_per_second or MAX_RATE
    limits.max_burst_size = _burst_size(limits.max_dispatches_per_second)
    limits.max_concurrent_dispatches = limits.max_concurrent_dispatches or DEFAULT_CONCURRENT
    fill_retry_defaults(queue.retry_config)


def fill_retry_defaults(retry: Any) -> None:
    """Fill in what the service chooses for a retry configuration."""
    retry.max_attempts = retry.max_attempts or DEFAULT_MAX_ATTEMPTS
    retry.max_doublings = retry.max_doublings or DEFAULT_MAX_DOUBLINGS
    if not seconds_of(retry.min_backoff):
        retry.min_backoff.CopyFrom(duration(DEFAULT_MIN_BACKOFF_SECONDS))
    if not seconds_of(retry.max_backoff):
        retry.max_backoff.CopyFrom(duration(DEFAULT_MAX_BACKOFF_SECONDS))


def check_queue(queue: Any) -> None:
    """Check the limits of a queue. Raises the error that the service answers with, [G] queue/create/… ."""
    limits = queue.rate_limits
    rate = limits.max_dispatches_per_second
    if math.isnan(rate) or rate < 0:
        raise invalid("RateLimits.maxDispatchesPerSecond cannot be negative.")
    if rate > MAX_RATE:
        raise invalid("RateLimits.maxDispatchesPerSecond must be less than or equal to 500.")
    if limits.max_concurrent_dispatches < 0:
        raise invalid("RateLimits.maxConcurrentDispatches cannot be negative.")
    if limits.max_concurrent_dispatches > MAX_CONCURRENT:
        raise invalid("RateLimits.maxConcurrentDispatches must be less than or equal to 5000.")
    check_retry(queue.retry_config)
    ratio = queue.stackdriver_logging_config.sampling_ratio
    if not 0 <= ratio <= 1:
        # [O]
        raise invalid("StackdriverLoggingConfig.samplingRatio must be between 0.0 and 1.0.")
    check_routing(queue.app_engine_routing_override)
    check_http_target(queue)


def check_retry(retry: Any) -> None:
    """Check a retry configuration, [G] queue/create/… ; those of ``maxBackoff`` and ``maxRetryDuration`` alike."""
    if retry.max_attempts < -1:
        raise invalid("RetryConfig.maxAttempts must be greater or equal to -1.")
    if retry.max_doublings < 0:
        raise invalid("RetryConfig.maxDoublings cannot be negative.")
    for field, value in (
        ("minBackoff", retry.min_backoff),
        ("maxBackoff", retry.max_backoff),
        ("maxRetryDuration", retry.max_retry_duration),
    ):
        check_duration(value, f"RetryConfig.{field}")
        if seconds_of(value) < 0:
            raise invalid(f"RetryConfig.{field} cannot be negative.")
    least = seconds_of(retry.min_backoff) or DEFAULT_MIN_BACKOFF_SECONDS
    most = seconds_of(retry.max_backoff) or DEFAULT_MAX_BACKOFF_SECONDS
    if least > most:
        raise invalid("RetryConfig.minBackoff must be less than or equal to RetryConfig.maxBackoff.")


def check_routing(routing: Any) -> None:
    """Check that a routing consists of labels of a host name, [O]."""
    for field in ("service", "version", "instance"):
        value = getattr(routing, field)
        if value and (not value.isascii() or not value.replace("-", "").isalnum() or len(value) > 63):
            raise invalid(f"AppEngineRouting.{field} is not valid: {value[:80]!r}.")


def check_http_target(queue: Any) -> None:
    """Check what a queue overrides in the requests of HTTP targets.

    [D] "Host value cannot be an empty string (INVALID_ARGUMENT)", "the port value must be a positive integer".
    """
    override = queue.http_target.uri_override
    if override.HasField("host") and not override.host:
        raise invalid("UriOverride.host cannot be empty.")
    if override.HasField("port") and not 0 <= override.port <= 65_535:
        raise invalid("UriOverride.port must be between 0 and 65535.")


def check_duration(value: Any, field: str) -> None:
    """Check that a Duration is one, [O]."""
    signs = {number > 0 for number in (value.seconds, value.nanos) if number}
    if abs(value.seconds) > _MAX_SECONDS or abs(value.nanos) > _MAX_NANOS or len(signs) > 1:
        raise invalid(f"{field} is not a valid duration.")


def config_of(queue: Any, name: str) -> QueueConfig:
    """Return the configuration of a queue with all defaults filled in; the store calls it ``name``."""
    limits = queue.rate_limits
    return QueueConfig(
        name=name,
        rate_per_second=limits.max_dispatches_per_second,
        bucket_size=limits.max_burst_size,
        max_concurrent_requests=limits.max_concurrent_dispatches,
        target=target_of(queue.app_engine_routing_override) or None,
        retry=policy_of(queue.retry_config),
    )


def policy_of(retry: Any) -> RetryPolicy:
    """Return the policy of a retry configuration with all defaults filled in.

    An attempt more than ``max_attempts`` is not made, unless ``max_retry_duration`` still allows it; 0 and -1 are no
    limits.
    """
    age_seconds = seconds_of(retry.max_retry_duration)
    return RetryPolicy(
        retry_limit=None if retry.max_attempts == -1 else retry.max_attempts - 1,
        age_limit_seconds=age_seconds or None,
        min_backoff_seconds=seconds_of(retry.min_backoff),
        max_backoff_seconds=seconds_of(retry.max_backoff),
        max_doublings=retry.max_doublings,
    )


def fill_retry(retry: Any, policy: RetryPolicy) -> None:
    """Fill a ``RetryConfig`` with a policy."""
    retry.max_attempts = -1 if policy.retry_limit is None else policy.retry_limit + 1
    retry.max_doublings = policy.max_doublings
    retry.min_backoff.CopyFrom(duration(policy.min_backoff_seconds))
    retry.max_backoff.CopyFrom(duration(policy.max_backoff_seconds))
    if policy.age_limit_seconds is not None:
        retry.max_retry_duration.CopyFrom(duration(policy.age_limit_seconds))


def queue_of(config: QueueConfig) -> Any:
    """Return the ``Queue`` of an entry of ``queue.yaml``, without its name and state."""
    queue = Queue()
    limits = queue.rate_limits
    limits.max_dispatches_per_second = MAX_RATE if config.rate_per_second is None else config.rate_per_second
    limits.max_burst_size = config.bucket_size
    limits.max_concurrent_dispatches = config.max_concurrent_requests or DEFAULT_CONCURRENT
    fill_retry(queue.retry_config, config.retry)
    if config.target:
        fill_routing(queue.app_engine_routing_override, config.target)
    return queue


def target_of(routing: Any) -> str:
    """Return ``[instance.][version.]service``; empty for the default service."""
    if not (routing.service or routing.version or routing.instance):
        return ""
    service = routing.service or "default"
    if not (routing.version or routing.instance):
        return str(service)
    parts = [routing.instance, routing.version or "default", service]
    return ".".join(part for part in parts if part)


def fill_routing(routing: Any, target: str) -> None:
    """Fill an ``AppEngineRouting`` with a target."""
    parts = [*reversed(target.split(".")), "", ""]
    routing.service, routing.version, routing.instance = parts[:3]


def seconds_of(value: Any) -> float:
    """Return a Duration in seconds."""
    return float(value.seconds + value.nanos / 1e9)


def duration(seconds: float) -> duration_pb2.Duration:
    """Return a Duration in whole microseconds; a longer one than the message can hold is cut."""
    whole = duration_pb2.Duration()
    whole.FromMicroseconds(round(min(seconds, _MAX_SECONDS) * 1e6))
    return whole


def _burst_size(rate: float) -> int:
    """Return the burst size for a rate: as large as the rate, but within the bounds that queues have been seen with."""
    return max(_BURST[0], min(_BURST[1], math.ceil(rate)))

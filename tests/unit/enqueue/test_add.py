"""Property tests of how often and how long an add is retried, with a simulated clock."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from google.appengine.api import apiproxy_stub_map
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as pb
from google.appengine.ext import testbed
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware import EnqueueError, Hook, call, defer, defer_many
from deferred_middleware.config import process
from deferred_middleware.config.hooks import Enqueued, Hooks
from deferred_middleware.enqueue.add import FIRST_DELAY_SECONDS, MAX_DELAY_SECONDS, MAX_RPC_SECONDS, RetryBudget, Timing
from tests.support import sample
from tests.support.answering import OK, Engine
from tests.support.timed_adds import Clock, add

seconds = st.floats(0.01, 600)
chances = st.floats(0, 1, exclude_max=True)


@given(seconds, st.lists(st.tuples(chances, st.floats(0, 20)), min_size=1, max_size=100))
def test_attempts_end_in_time(whole: float, steps: list[tuple[float, float]]) -> None:
    """No attempt starts after the time limit, for any random delays and any durations of the attempts."""
    now = 0.0
    by_chance = iter([chance for chance, _ in steps])
    attempts = RetryBudget(whole, Timing(clock=lambda: now, chance=lambda: next(by_chance)))

    for _, took in steps:
        limit = attempts.rpc_seconds()
        assert limit is not None
        assert 0 < limit <= min(MAX_RPC_SECONDS, whole / 3)
        now += min(took, limit)
        delay = attempts.delay()
        if delay is None:
            break
        assert 0.05 <= delay <= MAX_DELAY_SECONDS
        now += delay
        assert now < whole


@given(st.floats(1, 60), st.floats(1_000, 1e9))
def test_the_last_attempt_has_a_tenth_of_the_time(whole: float, start: float) -> None:
    """An attempt that starts late may take a tenth of the time limit, and the delays end at 5 seconds."""
    now = start
    attempts = RetryBudget(whole, Timing(clock=lambda: now, chance=lambda: 0.0))
    now = start + whole

    assert attempts.rpc_seconds() == pytest.approx(whole / 10)
    assert attempts.delay() is None
    random = RetryBudget(1e9, Timing(clock=lambda: start, chance=lambda: 0.5))
    assert [random.delay() for _ in range(3)] == pytest.approx([0.75 * FIRST_DELAY_SECONDS * n for n in (1, 2, 4)])
    endless = RetryBudget(1e9, Timing(clock=lambda: start, chance=lambda: 0.0))
    assert [endless.delay() for _ in range(20)][-1] == MAX_DELAY_SECONDS == 5


def test_no_time_is_a_single_attempt() -> None:
    """With a limit of 0 seconds there is one attempt, with the SDK's own deadline."""
    attempts = RetryBudget(0)

    assert attempts.rpc_seconds() is None
    assert attempts.delay() is None


TRANSIENT, INVALID = pb.TaskQueueServiceError.TRANSIENT_ERROR, pb.TaskQueueServiceError.INVALID_REQUEST


def answering(codes: Sequence[int], otherwise: int) -> Engine:
    """Install an engine that answers an add with each of ``codes``, and every later one with ``otherwise``."""
    left = iter(codes)
    stub = Engine(lambda adds: [next(left, otherwise)])
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
    return stub


def test_only_a_retry_waits(engine: testbed.Testbed) -> None:
    """The first attempt is made at once, and each further one after its delay."""
    answering([TRANSIENT, TRANSIENT], OK)
    clock = Clock()

    assert add(clock).was_enqueued
    assert clock.slept == [FIRST_DELAY_SECONDS, 2 * FIRST_DELAY_SECONDS]


@pytest.mark.parametrize(
    ("codes", "otherwise"),
    [([TRANSIENT], INVALID), ([TRANSIENT] * 2, INVALID), ([], TRANSIENT)],
    ids=["refused at the second attempt", "refused at the third attempt", "until the time is over"],
)
def test_the_error_counts_the_attempts(engine: testbed.Testbed, codes: Sequence[int], otherwise: int) -> None:
    """The error says how often the add was tried."""
    stub = answering(codes, otherwise)

    with pytest.raises(EnqueueError) as caught:
        add(Clock())
    assert f"It was tried {len(stub.rpcs)} times." in str(caught.value)


def test_the_error_does_not_count_a_single_attempt(engine: testbed.Testbed) -> None:
    """If there was one attempt, the error doesn't count."""
    answering([], INVALID)

    with pytest.raises(EnqueueError) as caught:
        add(Clock())
    assert "tried" not in str(caught.value)


@pytest.mark.parametrize("several", [False, True])
def test_hooks_hear_of_each_call_that_is_enqueued(engine: testbed.Testbed, several: bool) -> None:
    """A hook's on_enqueue gets each call once, with its task, and none that was refused."""
    heard: list[Enqueued] = []

    class Listening(Hook):
        """Records what is enqueued."""

        def on_enqueue(self, enqueued: Enqueued) -> None:
            heard.append(enqueued)

    process.install_hooks(Hooks([Listening()]))
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", Engine(lambda adds: [OK, INVALID, OK][: len(adds)]))
    if several:
        defer_many([call(sample.note, number) for number in range(3)], raise_errors=False)
    else:
        defer(sample.note, 0)

    assert [enqueued.call.args[0] for enqueued in heard] == ([0, 2] if several else [0])
    assert all(enqueued.task.was_enqueued for enqueued in heard)
    assert [(enqueued.queue, enqueued.transactional) for enqueued in heard] == [("default", False)] * len(heard)

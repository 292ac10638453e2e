"""Why a task doesn't run: each reason, and which one is named first."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.admin.reading.standing import QueueStanding, ServiceStatus
from deferred_middleware.server.admin.reading.why import Circumstances, rate_text, why_waiting
from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.records import PULL, TaskSummary

NOW = 1_700_000_000_000_000
TASK = TaskSummary(
    id=1,
    queue="mail",
    name="one",
    state="ready",
    eta_usec=NOW - 1,
    created_usec=NOW - 1,
    first_attempt_usec=None,
    finished_usec=None,
    method="POST",
    url="/work",
    target="",
    retry=None,
    dispatch_deadline_usec=None,
    retry_count=0,
    execution_count=0,
    previous_response=None,
    retry_reason=None,
)
UP = ServiceStatus(id="default", url="http://x", state="up", concurrency=6, running=1)


def why(task: dict[str, Any], **changes: Any) -> str | None:
    """Return the sentence for a task in these circumstances."""
    found = Circumstances(
        **{
            "now_usec": NOW,
            "config": QueueConfig(name="mail", rate_per_second=5),
            "standing": QueueStanding(tokens=5),
            "service": UP,
            **changes,
        }
    )
    return why_waiting(dataclasses.replace(TASK, **task), found)


LIMITED = QueueConfig(name="mail", rate_per_second=0.5, max_concurrent_requests=2)


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ({"state": "held"}, {}, ["transaction", "committed"]),
        ({"eta_usec": NOW + 60_000_000}, {}, ["Its ETA is", "in 60 s"]),
        ({"eta_usec": NOW + 3 * 86_400_000_000}, {}, ["Its ETA is", "2023-11-1", "in 3 d"]),
        ({"eta_usec": NOW + 5_000_000, "retry_count": 2}, {}, ["Back-off", "attempt 2 failed", "attempt 3", "in 5 s"]),
        ({}, {"paused_by_a_person": True}, ["Queue mail is paused", "deferred-middleware resume mail"]),
        ({}, {"config": QueueConfig(name="mail", rate_per_second=0)}, ["paused by its configuration"]),
        ({}, {"service": None, "not_served": "No service answers to 'x'."}, ["No service answers to 'x'."]),
        ({}, {"service": dataclasses.replace(UP, state="down")}, ["Service default is down"]),
        ({}, {"service": dataclasses.replace(UP, state="starting")}, ["Service default is starting"]),
        ({}, {"standing": QueueStanding(slowed_down_seconds=8, slowed_down_limit=1)}, ["503", "in 8 s"]),
        (
            {},
            {"config": LIMITED, "standing": QueueStanding(in_flight=2), "running": [7, 8]},
            ["Only 2 of queue mail may run", "and 2 do (tasks 7, 8)"],
        ),
        (
            {},
            {"config": LIMITED, "standing": QueueStanding(in_flight=2), "running": [7]},
            ["Only 2 of queue mail may run", "and 1 does (task 7), and 1 is about to"],
        ),
        ({}, {"config": LIMITED, "standing": QueueStanding(in_flight=2)}, ["and 2 are about to"]),
        (
            {},
            {"config": LIMITED, "standing": QueueStanding(in_flight=1, tokens=0, token_seconds=1.5)},
            ["rate of queue mail is 30/m", "next token comes at", "in 1.5 s"],
        ),
        ({}, {"service": dataclasses.replace(UP, running=6)}, ["Service default runs 6 tasks"]),
        ({}, {"is_next": True}, ["It starts at any moment."]),
        ({}, {"is_next": True, "service": dataclasses.replace(UP, state="down")}, ["Service default is down"]),
        (
            {"eta_usec": NOW + 60_000_000},
            {"is_next": True, "service": dataclasses.replace(UP, running=1, concurrency=1)},
            ["Service default runs 1 task, which is all that it takes at a time."],
        ),
        ({}, {"ahead": 3}, ["waits for its turn", "3 other tasks are ahead of it"]),
        ({}, {"ahead": 10000, "ahead_is_more": True}, ["more than 10,000 other tasks"]),
        ({}, {"paused_by_a_person": True, "ahead": 1}, ["is paused", "1 other task is ahead of it"]),
        ({}, {}, ["It is due, and starts at any moment."]),
        ({"method": PULL}, {}, ["waits for a worker to lease it", "pull queue"]),
        ({"method": PULL, "eta_usec": NOW + 9_000_000, "retry_count": 1}, {}, ["has leased it until", "in 9 s"]),
        ({"method": PULL, "eta_usec": NOW + 9_000_000}, {}, ["From", "in 9 s on, it waits"]),
    ],
)
def test_each_reason_is_a_sentence(task: dict[str, Any], changes: dict[str, Any], words: list[str]) -> None:
    """The sentence names the reason, with its numbers, and ends with one full stop."""
    sentence = why(task, **changes)

    assert sentence is not None
    assert [word for word in words if word not in sentence] == []
    assert sentence.endswith(".")
    assert not sentence.endswith("..")


@pytest.mark.parametrize("state", ["running", "succeeded", "failed"])
def test_what_does_not_wait_has_no_reason(state: str) -> None:
    """A task that runs or is finished has no sentence."""
    assert why({"state": state}) is None


def test_what_a_person_can_change_comes_first() -> None:
    """A paused queue is named before its rate, its concurrency and its service."""
    everything = {
        "paused_by_a_person": True,
        "config": LIMITED,
        "service": dataclasses.replace(UP, state="down"),
        "standing": QueueStanding(in_flight=2, tokens=0, slowed_down_seconds=3),
    }

    assert str(why({}, **everything)).startswith("Queue mail is paused")


@given(
    st.integers(-(2**62), 2**62),
    st.integers(0, 10**6),
    st.floats(0, 1e12),
    st.sampled_from([None, 0, 3]),
    st.sampled_from(["POST", PULL]),
)
def test_every_task_that_waits_has_one_sentence(
    eta: int, retries: int, seconds: float, tokens: int | None, method: str
) -> None:
    """Whatever the numbers are, there is one sentence."""
    sentence = why(
        {"eta_usec": eta, "retry_count": retries, "method": method},
        standing=QueueStanding(tokens=tokens, token_seconds=seconds, slowed_down_seconds=seconds / 2),
    )

    assert sentence
    assert "\n" not in sentence
    assert sentence.count(". ") == 0


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (None, "unlimited"),
        (5, "5/s"),
        (0.5, "30/m"),
        (1 / 60, "1/m"),
        (10 / 3600, "10/h"),
        (0.3333, "0.3333/s"),
        (0, "0/s"),
    ],
)
def test_a_rate_is_written_as_in_queue_yaml(rate: float | None, text: str) -> None:
    """The unit is the first one in which the rate is a whole number."""
    assert rate_text(QueueConfig(name="mail", rate_per_second=rate)) == text

"""Which tasks are claimed next, tested without a store, threads or a real clock."""

from __future__ import annotations

import dataclasses
import math

import pytest

from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.config.services import Service, ServiceDirectory
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.planning import ClaimPlanner, Destinations, Round
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.dispatch.queue_limits import QueueLimits
from deferred_middleware.server.store.records import Lane
from tests.support.storing import TASK

NOW_USEC = 1_700_000_000_000_000
CONCURRENCY = 4


def service(name: str) -> Service:
    """Return a service."""
    return Service(name=name, version="local", host="127.0.0.1", port=1, concurrency=CONCURRENCY)


DEFAULT, BACKGROUND = service("default"), service("background")


class Planning:
    """A planner for two services, and the slots of the first one."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.queues = QueueRegistry()
        self.limits = QueueLimits(self.queues, clock=lambda: self.now)
        self.destinations = Destinations(self.queues, ServiceDirectory([DEFAULT, BACKGROUND]))
        self.planner = ClaimPlanner(self.destinations, self.limits)
        self.slots = ServiceSlots(CONCURRENCY, Quarantine(), lambda: math.inf)

    def survey(self, *lanes: Lane, eta_usec: int = NOW_USEC, paused: frozenset[str] = frozenset()) -> Round:
        """Survey lanes whose earliest ETA is ``eta_usec``."""
        return self.planner.survey([(lane, eta_usec) for lane in lanes], NOW_USEC, paused)

    def claims(self, *lanes: Lane) -> dict[Lane, int]:
        """Return the claims for due lanes of the default service."""
        found = self.survey(*lanes)
        return self.planner.claims(found.due[DEFAULT], self.slots, found.allowed)


@pytest.fixture
def planning() -> Planning:
    """Queues without limits, and free slots."""
    return Planning()


def test_a_lane_that_is_due_goes_to_its_service(planning: Planning) -> None:
    """A due lane goes to its target's service, and the queue's target takes precedence over the tasks'."""
    planning.queues.replace([QueueConfig(name="mail", target="background")])
    own, queues = Lane("default", "local.background"), Lane("mail", "local.default")

    found = planning.survey(Lane("default", ""), own, queues)

    assert found.due == {DEFAULT: {"default": [Lane("default", "")]}, BACKGROUND: {"default": [own], "mail": [queues]}}


def test_a_lane_that_is_not_due_is_waited_for(planning: Planning) -> None:
    """If no lane is due, the round waits for the earliest ETA."""
    found = planning.survey(Lane("default", ""), eta_usec=NOW_USEC + 2_500_000)

    assert (found.due, found.wait_seconds) == ({}, 2.5)


def test_a_queue_without_tokens_is_waited_for(planning: Planning) -> None:
    """If a queue has no tokens, the round waits for its next token."""
    planning.queues.replace([QueueConfig(name="default", rate_per_second=4.0, bucket_size=1)])
    planning.limits.claimed("default", 1)
    planning.limits.began("default")

    found = planning.survey(Lane("default", ""))

    assert found.due == {}
    assert found.wait_seconds == pytest.approx(0.25)


def test_a_paused_queue_is_left_out(planning: Planning) -> None:
    """Tasks of a paused queue are not claimed; other queues continue."""
    found = planning.survey(Lane("held", ""), Lane("other", ""), paused=frozenset({"held"}))

    assert found.due == {DEFAULT: {"other": [Lane("other", "")]}}


def test_a_lane_without_a_service_is_undeliverable(planning: Planning) -> None:
    """A lane whose target is unknown is reported with its error and belongs to no service."""
    found = planning.survey(Lane("default", "local.nowhere"))

    ((lane, error),) = found.undeliverable
    assert (lane, error.target, found.due) == (Lane("default", "local.nowhere"), "local.nowhere", {})


def test_lanes_share_what_their_queue_may_claim(planning: Planning) -> None:
    """The lanes of a queue share its claims equally, and the queue claims no more tasks than there are slots."""
    lanes = [Lane("default", ""), Lane("default", "default")]

    assert planning.claims(*lanes) == dict.fromkeys(lanes, CONCURRENCY // 2)


def test_lanes_take_turns(planning: Planning) -> None:
    """If a queue may claim too little for all its lanes, they take turns."""
    planning.queues.replace([QueueConfig(name="default", max_concurrent_requests=1)])
    first, second = Lane("default", ""), Lane("default", "default")

    assert [planning.claims(first, second) for _ in range(3)] == [{first: 1}, {second: 1}, {first: 1}]


def test_a_queue_finds_a_slot_though_another_is_due_too(planning: Planning) -> None:
    """If two queues are due, each gets at least one slot."""
    first, second = Lane("first", ""), Lane("second", "")

    assert planning.claims(first, second) == {first: CONCURRENCY - 1, second: 1}


def test_reserved_slots_are_not_claimed_for(planning: Planning) -> None:
    """A slot that is reserved for an expected queue is not used for another queue's claims."""
    planning.slots.expect(["default", "other"])

    assert planning.claims(Lane("default", "")) == {Lane("default", ""): CONCURRENCY - 1}


def test_nothing_is_claimed_for_a_suspended_service(planning: Planning) -> None:
    """Tasks of a suspended service are not claimed."""
    planning.slots.suspend(True)

    assert planning.claims(Lane("default", "")) == {}


def test_expected_queues(planning: Planning) -> None:
    """A queue with a target is expected only there; paused queues and pull queues are expected nowhere."""
    planning.queues.replace(
        [
            QueueConfig(name="mail", target="background"),
            QueueConfig(name="held", rate_per_second=0),
            QueueConfig(name="pull", mode="pull"),
        ]
    )

    assert planning.destinations.expected_queues() == {DEFAULT: {"default"}, BACKGROUND: {"default", "mail"}}


def test_nothing_is_claimed_ahead_of_a_slow_disk(planning: Planning) -> None:
    """Short tasks are claimed before there are slots for them, but not while results wait for the disk."""
    lane = Lane("default", "")
    task = dataclasses.replace(TASK, id=1)
    for _ in range(30):
        planning.slots.assign([task])
        planning.slots.begin()
        planning.slots.end(task, 0.0001)
    found = planning.survey(lane)

    assert planning.planner.claims(found.due[DEFAULT], planning.slots, found.allowed)[lane] > CONCURRENCY
    found = planning.survey(lane)
    assert planning.planner.claims(found.due[DEFAULT], planning.slots, found.allowed, ahead=False)[lane] == CONCURRENCY

"""While keys are introduced or changed in steps, with old and new versions side by side, no task is refused.

A plan gives the days on which each version of the app gets traffic, as ``docs/security.rst`` describes. The platform
keeps a task for 31 days, and any version that gets traffic in that time may run it. For each such pair of versions the
test uses the real code on both sides: one enqueues, and the other gets the task at the earliest and the latest time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest
from google.appengine.ext import deferred

from deferred_middleware import DeferredMiddleware, Settings, defer
from deferred_middleware.config import process
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.process import Deployment
from deferred_middleware.execution.trust import Authenticator
from deferred_middleware.testing import EnqueuedTask, capture_tasks
from deferred_middleware.testing.delivery import AttemptCounts, deliver
from tests.support import sample
from tests.support.watching import other_pages

OLD, NEW = SecretKey("o" * 40), SecretKey("n" * 40)
LEGACY_URL = "/_ah/queue/deferred"
DAY = 24 * 3600.0
KEPT = 31 * DAY - 1
"""How long the platform keeps a task, in seconds."""
ETA_DAYS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """A version of the app, and the days on which it gets traffic."""

    name: str
    days: tuple[float, float]
    keys: tuple[SecretKey, ...] = ()
    required: bool = False
    ours: bool = True
    """Whether it defers with this library, not with the SDK's."""

    def deploy(self, environment: str | None) -> DeferredMiddleware:
        """Make this process run that version, and return its app."""
        process._deployment = Deployment(environment=environment, application="app")
        process.install_keys(self.keys)
        settings = Settings(require_signature=self.required, legacy_urls=(LEGACY_URL,))
        return DeferredMiddleware(other_pages, settings=settings)

    def enqueue(self, environment: str | None) -> list[EnqueuedTask]:
        """Return tasks that the version enqueues: a plain one, a named one, and one with the latest possible ETA."""
        self.deploy(environment)
        with capture_tasks() as tasks:
            if self.ours:
                defer(sample.note, "plain")
                defer(sample.note, "named", _name="name-of-its-own")
                defer(sample.note, "late", _countdown=ETA_DAYS * DAY - 60)
            else:
                deferred.defer(sample.note, "older")
                deferred.defer(sample.note, "late", _countdown=ETA_DAYS * DAY - 60)
            return tasks.pending


ADOPTION = [
    Version(name="the older library", days=(-40, 1), ours=False),
    Version(name="ours, no key", days=(0, 3)),
    Version(name="a key", days=(2, 35), keys=(NEW,)),
    # 31 days after the last day on which a version without a key got traffic.
    Version(name="required", days=(3 + 31, 100), keys=(NEW,), required=True),
]
ROTATION = [
    Version(name="old", days=(-40, 1), keys=(OLD,)),
    Version(name="old signs, both verify", days=(0, 3), keys=(OLD, NEW)),
    Version(name="new signs, both verify", days=(2, 35), keys=(NEW, OLD)),
    # 31 days after the last day on which a version that signs with the old key got traffic.
    Version(name="new", days=(3 + 31, 100), keys=(NEW,)),
]
ROTATION_REQUIRED = [dataclasses.replace(version, required=True) for version in ROTATION]

PLANS: dict[str, tuple[list[Version], str | None]] = {
    "adoption": (ADOPTION, "standard"),
    "rotation": (ROTATION, "standard"),
    "rotation, signatures required": (ROTATION_REQUIRED, "standard"),
    "rotation elsewhere": (ROTATION, None),
}


def _without(plan: list[Version], index: int) -> list[Version]:
    """Return the plan without one step, so that the next step takes its place."""
    before, skipped, after = plan[index - 1], plan[index], plan[index + 1]
    return [*plan[:index], dataclasses.replace(after, days=(before.days[1] - 1, skipped.days[1])), *plan[index + 2 :]]


def _early(plan: list[Version]) -> list[Version]:
    """Return the plan without the wait before its last step."""
    last = plan[-1]
    return [*plan[:-1], dataclasses.replace(last, days=(plan[-2].days[0] + 2, last.days[1]))]


# Plans with a mistake, and the pairs (enqueueing version, version that refuses its task).
BROKEN: dict[str, tuple[list[Version], str | None, set[tuple[str, str]]]] = {
    "required at once": (
        _without(ADOPTION, 2),
        "standard",
        {("ours, no key", "required"), ("the older library", "required")},
    ),
    "required early": (
        _early(ADOPTION),
        "standard",
        {("ours, no key", "required"), ("the older library", "required")},
    ),
    "the new key first at once": (_without(ROTATION, 1), "standard", {("new signs, both verify", "old")}),
    "the new key first at once, elsewhere": (_without(ROTATION, 1), None, {("new signs, both verify", "old")}),
    "the new key alone, early": (
        _early(ROTATION),
        None,
        {("old", "new"), ("old signs, both verify", "new")},
    ),
    "the new key alone, at once": (
        _without(ROTATION, 2),
        None,
        {("old", "new"), ("old signs, both verify", "new")},
    ),
}


class Clock:
    """The time at which a task's request arrives."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Make signature checks use a fake clock."""
    clock = Clock()
    monkeypatch.setitem(Authenticator.__init__.__kwdefaults__, "clock", clock)  # type: ignore[arg-type] # it is there
    return clock


def meetings(plan: list[Version]) -> Iterator[tuple[Version, Version, float]]:
    """Yield (version, other version that may run its task, seconds after the enqueue)."""
    for one in plan:
        for other in plan:
            if not other.ours:
                continue
            ages = set()
            for enqueued in (day * DAY for day in one.days):
                first = max(enqueued, other.days[0] * DAY)
                last = min(enqueued + KEPT, other.days[1] * DAY)
                if first <= last:
                    ages |= {first - enqueued, last - enqueued}
            yield from ((one, other, age) for age in sorted(ages))


def refusals(plan: list[Version], environment: str | None, clock: Clock) -> tuple[set[tuple[str, str]], int]:
    """Carry out a plan; return the pairs of versions between which tasks are refused, and the number that ran."""
    refused, ran = set(), 0
    for one, other, age in meetings(plan):
        tasks = one.enqueue(environment)
        app = other.deploy(environment)
        for task in tasks:
            clock.now = max(time.time() + age, task.eta.timestamp())
            sample.ran.clear()
            run = deliver(app, task, AttemptCounts())
            assert (run.status, len(sample.ran)) in ((200, 1), (403, 0))
            if run.status == 403:
                refused.add((one.name, other.name))
            ran += len(sample.ran)
    return refused, ran


@pytest.mark.parametrize("name", PLANS)
def test_no_task_is_refused_while_keys_are_introduced_or_changed(name: str, clock: Clock) -> None:
    """If the plan follows the documentation, each task runs wherever and whenever it may arrive."""
    plan, environment = PLANS[name]

    refused, ran = refusals(plan, environment, clock)

    assert refused == set()
    met = {(one.name, other.name) for one, other, _ in meetings(plan)}
    # Neighbours deliver to each other in both directions, and each version delivers to itself.
    ours = [version for version in plan if version.ours]
    for one, other in zip(ours, [*ours[1:], ours[-1]], strict=True):
        assert {(one.name, other.name), (other.name, one.name), (one.name, one.name)} <= met
    assert ran > 40


@pytest.mark.parametrize("name", BROKEN)
def test_a_step_that_is_skipped_refuses_tasks(name: str, clock: Clock) -> None:
    """Each step is needed: without it, exactly the tasks that it protects are refused."""
    plan, environment, expected = BROKEN[name]

    refused, ran = refusals(plan, environment, clock)

    assert refused == expected
    assert ran > 10


@pytest.mark.parametrize("name", BROKEN)
def test_a_refused_task_runs_once_its_version_is_back(name: str, clock: Clock) -> None:
    """A refused task isn't lost: the queue retries it, and a version that followed the plan runs it."""
    plan, environment, expected = BROKEN[name]
    versions = {version.name: version for version in plan}
    for one, other in expected:
        for task in versions[one].enqueue(environment):
            clock.now = task.eta.timestamp()
            assert deliver(versions[other].deploy(environment), task, AttemptCounts()).status == 403
            # A version with our library runs its own tasks. The older library's run while signatures aren't required.
            able = versions[one] if versions[one].ours else ADOPTION[1]
            assert deliver(able.deploy(environment), task, AttemptCounts()).status == 200


def test_a_task_may_run_when_it_is_due_and_for_31_days_from_then(clock: Clock) -> None:
    """A signature is valid at the ETA and for the 31 days that the platform keeps a task, but no longer."""
    version = ROTATION_REQUIRED[0]
    tasks = version.enqueue(None)
    app = version.deploy(None)
    for task in tasks:
        statuses: list[Any] = []
        for age in (0.0, KEPT, 31 * DAY, 33 * DAY):
            clock.now = task.eta.timestamp() + age
            statuses.append(deliver(app, task, AttemptCounts()).status)
        assert statuses == [200, 200, 200, 403]

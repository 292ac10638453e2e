"""What happens in a simulated run: the stimuli from outside, drawn from the seed before the run begins.

What an attempt does (how long it takes, what it answers) is drawn from the seed, the task and the attempt's number, not
from one sequence. So a run in which some stimuli are left out still has the others as they were, and a run that fails
can be shrunk.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.records import RetryPolicy

Kind = Literal[
    "add", "crowd", "delete", "purge", "pause", "resume", "retry", "force", "transaction",
    "kill", "power cut", "clock", "process", "disk", "configure",
]  # fmt: skip

QUEUES = ("default", "rated", "narrow", "plain", "other")
TARGETS = ("", "", "", "background")
QUICK = RetryPolicy(min_backoff_seconds=0.5, max_backoff_seconds=8.0)


@dataclass(frozen=True, kw_only=True)
class Stimulus:
    """Something that happens at a time, in seconds since the begin."""

    at: float
    kind: Kind
    number: int
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in self.facts.items())
        return f"{self.kind}({facts})"


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """What an attempt does: how long it takes, and what comes back how long after that."""

    seconds: float
    status: int | None
    permanent: bool = False
    travel_seconds: float = 0.0005
    answers_twice: bool = False


def queues(variant: int) -> list[QueueConfig]:
    """Return the queues of one version of queue.yaml."""
    rated = [(5.0, 3), (1.0, 1), (40.0, 10), (0.0, 5)][variant % 4]
    return [
        QueueConfig(name="rated", rate_per_second=rated[0], bucket_size=rated[1], retry=QUICK),
        QueueConfig(name="narrow", max_concurrent_requests=1 + variant % 2, retry=QUICK),
        QueueConfig(name="plain", target="background" if variant % 3 == 1 else None, retry=QUICK),
        *([] if variant % 5 == 4 else [QueueConfig(name="other", retry=RetryPolicy(retry_limit=1))]),
    ]


def draw(seed: int) -> list[Stimulus]:
    """Return the stimuli of a run, in their order."""
    chance = random.Random(f"plan {seed}")
    number = chance.randrange(8, 36)
    length = chance.choice([2.0, 10.0, 40.0, 120.0])
    kinds: list[Kind] = ["add"] * 14
    # Each run has some of the accidents, and most have few.
    for kind, weight in (
        ("crowd", 1), ("delete", 1), ("purge", 1), ("pause", 1), ("resume", 2), ("retry", 1), ("force", 1),
        ("transaction", 3), ("kill", 3), ("power cut", 2), ("clock", 5), ("process", 3), ("disk", 3), ("configure", 2),
    ):  # fmt: skip
        if chance.random() < 0.45:
            kinds += [kind] * weight  # type: ignore[list-item] # one of the literals
    at = 0.0
    found = []
    for index in range(number):
        # Bursts and quiet times.
        at += chance.choice([0.0, 0.0, 0.001, 0.02, chance.expovariate(number / length)])
        kind = chance.choice(kinds) if index else "add"
        found.append(Stimulus(at=at, kind=kind, number=index, facts=_facts(kind, chance)))
    return found


def _facts(kind: Kind, chance: random.Random) -> dict[str, Any]:
    queue = chance.choice(QUEUES)
    if kind in ("add", "transaction"):
        facts: dict[str, Any] = {
            "queue": queue,
            "target": chance.choice(TARGETS),
            "tasks": chance.choice([1, 1, 2, 3, 8]),
            "countdown": chance.choice([0, 0, 0, 0.3, 5.0, 45.0]),
        }
        if kind == "add":
            return {**facts, "name": chance.choice([None, None, "a", "b"])}
        return {**facts, "fate": chance.choice(["commit", "commit", "roll back", "crash before", "crash after"])}
    if kind == "crowd":
        return {"queues": chance.choice([3, 12]), "tasks": chance.choice([2, 9])}
    if kind == "clock":
        return {"by": chance.choice([-3600.0, -30.0, -2.0, 2.0, 40.0, 7200.0])}
    if kind == "process":
        return {"service": chance.choice(["default", "background"]), "intended": chance.random() < 0.3}
    if kind == "disk":
        return {
            "mode": chance.choice(["slow", "slow", "full", "broken"]),
            "seconds": chance.choice([0.1, 1.0, 5.0]),
        }
    if kind == "configure":
        return {"variant": chance.randrange(20)}
    if kind in ("kill", "power cut"):
        return {"down": chance.choice([0.01, 1.0, 30.0])}
    if kind in ("pause", "resume", "purge", "retry"):
        return {"queue": queue}
    return {"pick": chance.randrange(100)}


def behaviour(seed: int, task: int, attempt: int) -> Behaviour:
    """Return what an attempt of a task does."""
    chance = random.Random(f"attempt {seed} {task} {attempt}")
    seconds = math.exp(chance.uniform(math.log(0.0005), math.log(0.03)))
    if chance.random() < 0.12:
        seconds = chance.uniform(0.1, 4.0)
    outcome = chance.random()
    # A task gets well after a while, so that each run comes to an end.
    if outcome < 0.72 or attempt > 6:
        status: int | None = 200
    elif outcome < 0.88:
        status = 500
    elif outcome < 0.93:
        status = 503
    elif outcome < 0.96:
        status = None
    else:
        return Behaviour(seconds=seconds, status=200, permanent=True)
    return Behaviour(
        seconds=seconds,
        status=status,
        travel_seconds=chance.choice([0.0002, 0.0002, 0.001, 0.05, 2.0]),
        answers_twice=chance.random() < 0.1,
    )

"""Runs seeds, and shrinks those that fail."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.simulation.plan import Stimulus, draw
from tests.simulation.world import World

# The store calls fsync, which costs nothing in memory.
_IN_MEMORY = "/dev/shm"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a run."""

    seed: int
    stimuli: Sequence[Stimulus]
    story: Sequence[str]
    failure: BaseException | None
    seconds: float
    begun: int

    def __str__(self) -> str:
        return "\n".join([*self.story, f"Seed {self.seed}: {self.failure!r}"])


def run_seed(seed: int, stimuli: Sequence[Stimulus] | None = None) -> Outcome:
    """Run one seed, or only some of its stimuli."""
    stimuli = draw(seed) if stimuli is None else stimuli
    failure: BaseException | None = None
    logger = logging.getLogger("deferred_middleware")
    level = logger.level
    # Accidents are logged, and there are many.
    logger.setLevel(logging.CRITICAL + 1)
    place = _IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None
    try:
        with tempfile.TemporaryDirectory(prefix="dm-simulation", dir=place) as directory:
            world = World(seed, Path(directory), stimuli)
            try:
                world.run()
            except Exception as error:  # noqa: BLE001 - also a defect of the server is a finding
                failure = error
    finally:
        logger.setLevel(level)
    return Outcome(
        seed=seed,
        stimuli=stimuli,
        story=world.story,
        failure=failure,
        seconds=world.now,
        begun=world.model.begun,
    )


def _kind(outcome: Outcome) -> str:
    return re.sub(r"\d+", "", repr(outcome.failure))


def shrink(failed: Outcome) -> Outcome:
    """Leave out stimuli as long as the run fails; return the shortest run that was found."""
    size = max(1, len(failed.stimuli) // 2)
    while True:
        start = 0
        while start < len(failed.stimuli):
            fewer = [*failed.stimuli[:start], *failed.stimuli[start + size :]]
            tried = run_seed(failed.seed, fewer)
            if _kind(tried) == _kind(failed):
                failed = tried
            else:
                start += size
        if size == 1:
            return failed
        size //= 2

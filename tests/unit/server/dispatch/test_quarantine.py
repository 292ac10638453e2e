"""Which task is blamed if an app process dies, and when it becomes a dead letter."""

from __future__ import annotations

import dataclasses

import pytest

from deferred_middleware.server.delivery.attempt_result import ProcessEnd
from deferred_middleware.server.dispatch.quarantine import DEATHS, Quarantine
from deferred_middleware.server.store.records import AttemptRecord, ClaimedTask
from tests.support.storing import TASK


class History:
    """Attempts of tasks, and a clock."""

    def __init__(self) -> None:
        self.attempts: dict[int, list[AttemptRecord]] = {}
        self.now = 100.0
        self.quarantine = Quarantine(clock=lambda: self.now)

    def task(self, task_id: int) -> ClaimedTask:
        """Return a task as its next claim gives it."""
        tried = len(self.attempts.get(task_id, []))
        return dataclasses.replace(TASK, id=task_id, name=f"task{task_id}", retry_count=tried)

    def note(self, task_id: int, reason: str | None) -> None:
        """Record an attempt."""
        kept = self.attempts.setdefault(task_id, [])
        kept.append(
            AttemptRecord(
                number=len(kept) + 1,
                started_usec=1,
                duration_usec=1,
                status=None,
                reason=reason,
                service="default",
                excerpt=b"",
            )
        )

    def died(self, task: ClaimedTask, end: ProcessEnd | None, *, service: str = "default") -> tuple[str, bool]:
        """Report that a task's process died; return the quarantine's decision."""
        return self.quarantine.process_died(task, service, end, self.attempts.get(task.id, []))

    def die(self, task_id: int, end: ProcessEnd | None) -> tuple[bool, bool]:
        """Run a task whose process dies; return whether it is blamed and whether it is given up."""
        task = self.task(task_id)
        self.quarantine.attempt_begins(task, "default")
        reason, given_up = self.died(task, end)
        self.note(task_id, reason)
        return "another task is suspected" not in reason, given_up


@pytest.fixture
def history() -> History:
    """A history without attempts."""
    return History()


def end(number: int) -> ProcessEnd:
    """Return the death of a process."""
    return ProcessEnd(service="default", number=number, how="was killed by signal 9 (SIGKILL)", intended=False)


def test_a_task_that_kills_three_times_is_given_up(history: History) -> None:
    """A task that is blamed for three deaths in a row becomes a dead letter and is no longer a suspect."""
    assert [history.die(1, end(number)) for number in range(1, DEATHS + 1)] == [
        (True, False),
        (True, False),
        (True, True),
    ]
    assert "3 attempts in a row" in str(history.attempts[1][-1].reason)
    assert not history.quarantine.is_suspect(history.task(1))


def test_an_attempt_that_survives_clears_a_task(history: History) -> None:
    """An attempt that the process survives clears the task of earlier deaths."""
    history.die(1, end(1))
    history.die(1, end(2))
    task = history.task(1)
    assert history.quarantine.is_suspect(task)
    history.quarantine.attempt_begins(task, "default")
    history.quarantine.attempt_survived(task, "default")
    history.note(1, "status 500")
    assert not history.quarantine.is_suspect(history.task(1))
    assert history.die(1, end(3)) == (True, False)


def test_all_tasks_of_a_process_that_died_are_suspects(history: History) -> None:
    """If a process dies without a known suspect, each of its tasks becomes a suspect and then runs alone."""
    tasks = [history.task(number) for number in (1, 2, 3)]
    for task in tasks:
        history.quarantine.attempt_begins(task, "default")
    for task in tasks:
        history.died(task, end(1))
    assert all(history.quarantine.is_suspect(task) for task in tasks)


def test_a_suspect_that_runs_is_blamed_and_not_the_others(history: History) -> None:
    """If the process dies while a suspect runs, the other tasks are not suspected, whichever is reported first."""
    history.die(1, end(1))
    suspect, chance = history.task(1), history.task(2)
    history.quarantine.attempt_begins(suspect, "default")
    history.quarantine.attempt_begins(chance, "default")
    assert "another task is suspected" in history.died(chance, end(2))[0]
    assert "another task is suspected" not in history.died(suspect, end(2))[0]
    assert not history.quarantine.is_suspect(chance)
    late = history.task(3)
    assert "another task is suspected" in history.died(late, end(2))[0]
    assert not history.quarantine.is_suspect(late)


def test_the_next_death_is_another_matter(history: History) -> None:
    """A suspect that is blamed for one death doesn't excuse other tasks at the next death."""
    history.die(1, end(1))
    history.die(1, end(2))
    assert history.die(2, end(3)) == (True, False)


def test_connections_that_break_off_together_are_one_death(history: History) -> None:
    """Lost connections to an external service count as one death if they follow a blamed one within a second."""
    history.die(1, None)
    history.die(1, None)
    assert history.die(2, None) == (False, False)
    history.now += 1.5
    assert history.die(3, None) == (True, False)


def test_services_are_apart(history: History) -> None:
    """A suspect in one service doesn't excuse the tasks of another."""
    history.die(1, end(1))
    history.quarantine.attempt_begins(history.task(1), "default")
    other = history.task(2)
    history.quarantine.attempt_begins(other, "background")
    assert "another task is suspected" not in history.died(other, end(1), service="background")[0]


def test_a_retried_dead_letter_begins_anew(history: History) -> None:
    """A dead letter that is retried is given up only after three more deaths."""
    for number in range(1, DEATHS + 1):
        history.die(1, end(number))
    fresh = dataclasses.replace(history.task(1), retry_count=0)
    history.quarantine.attempt_begins(fresh, "default")
    assert history.died(fresh, end(9))[1] is False

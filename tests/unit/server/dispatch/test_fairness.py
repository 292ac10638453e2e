"""How queues share the slots of a service, tested without threads."""

from __future__ import annotations

from typing import Any

from deferred_middleware.server.delivery.attempt_result import ProcessEnd

from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.store.records import ClaimedTask


def task(queue: str, task_id: int) -> ClaimedTask:
    """Return a claimed task of a queue."""
    fields: dict[str, Any] = dict.fromkeys(ClaimedTask.__dataclass_fields__)
    return ClaimedTask(**{**fields, "id": task_id, "queue": queue, "name": str(task_id), "retry_count": 0})


def tasks(queue: str, *ids: int) -> list[ClaimedTask]:
    """Return claimed tasks of a queue."""
    return [task(queue, task_id) for task_id in ids]


def begun(slots: ServiceSlots) -> list[int] | None:
    """Return the IDs of the tasks that begin now."""
    found = slots.begin()
    return None if found is None else [one.task.id for one in found]


def test_a_free_slot_goes_to_the_queue_with_the_fewest() -> None:
    """A free slot goes to the queue with the fewest running tasks, whatever the order of assignment."""
    slots = ServiceSlots(3, Quarantine())
    slots.assign(tasks("long", 1, 2, 3, 4))
    slots.assign(tasks("short", 5))

    assert begun(slots) == [1, 5, 2]
    slots.end(task("long", 1), 1.0)
    assert begun(slots) == [3]


def test_slots_are_reserved_for_expected_queues() -> None:
    """Up to half of the slots stay free for expected queues that occupy none."""
    slots = ServiceSlots(4, Quarantine())
    slots.expect(["busy", "idle", "another", "third"])
    slots.assign(tasks("busy", 1, 2, 3, 4))

    assert begun(slots) == [1, 2]
    slots.assign(tasks("idle", 5))
    assert begun(slots) == [5]


def test_forced_tasks_go_first() -> None:
    """A forced task begins before the others and isn't withdrawn."""
    slots = ServiceSlots(1, Quarantine())
    slots.assign(tasks("default", 1, 2))
    slots.assign(tasks("default", 3), forced=True)

    assert [one.id for one in slots.withdraw(["default"])] == [1, 2]
    assert begun(slots) == [3]


def test_suspects_run_one_at_a_time() -> None:
    """Two suspects never run at the same time, but other tasks may run beside a suspect."""
    quarantine = Quarantine()
    end = ProcessEnd(service="default", number=1, how="ended", intended=False)
    slots = ServiceSlots(3, quarantine)
    suspects = tasks("default", 1, 2)
    for suspect in suspects:
        quarantine.process_died(suspect, "default", end, [])
    slots.assign(suspects)
    slots.assign(tasks("default", 3))

    assert begun(slots) == [1, 3]
    slots.end(suspects[0], 1.0)
    assert begun(slots) == [2]


def test_closed_slots_end_with_the_attempts_in_flight() -> None:
    """After closing, no task begins; begin() returns None when no task runs any more."""
    slots = ServiceSlots(1, Quarantine())
    slots.assign(tasks("default", 1, 2))
    assert begun(slots) == [1]

    assert [one.id for one in slots.close()] == [2]

    assert begun(slots) == []
    slots.end(task("default", 1), 1.0)
    assert begun(slots) is None


def test_an_attempt_ends_once() -> None:
    """Ending the same attempt twice frees only one slot."""
    slots = ServiceSlots(1, Quarantine())
    slots.assign(tasks("default", 1, 2, 3))
    slots.more_is_due(True)
    assert begun(slots) == [1]

    assert slots.end(task("default", 1), 1.0) is True
    assert slots.end(task("default", 1), 1.0) is False
    assert begun(slots) == [2]
    assert [one.id for one in slots.running()] == [2]

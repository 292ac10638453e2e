"""How queues share the slots of a service, tested without threads."""

from __future__ import annotations

import math
from typing import Any

from deferred_middleware.server.delivery.attempt_result import ProcessEnd
from deferred_middleware.server.delivery.channel import AheadBudget
from deferred_middleware.server.dispatch.fairness import ServiceSlots
from deferred_middleware.server.dispatch.quarantine import Quarantine
from deferred_middleware.server.store.records import ClaimedTask


def task(queue: str, task_id: int) -> ClaimedTask:
    """Return a claimed task of a queue."""
    fields: dict[str, Any] = dict.fromkeys(ClaimedTask.__dataclass_fields__)
    return ClaimedTask(**{**fields, "id": task_id, "queue": queue, "name": str(task_id), "body": b"", "retry_count": 0})


def tasks(queue: str, *ids: int) -> list[ClaimedTask]:
    """Return claimed tasks of a queue."""
    return [task(queue, task_id) for task_id in ids]


def begun(slots: ServiceSlots) -> list[int] | None:
    """Return the IDs of the tasks that begin now."""
    found = slots.begin()
    return None if found is None else [one.task.id for one in found]


def test_a_free_slot_goes_to_the_queue_with_the_fewest() -> None:
    """A free slot goes to the queue with the fewest running tasks, whatever the order of assignment."""
    slots = ServiceSlots(3, Quarantine(), lambda: math.inf)
    slots.assign(tasks("long", 1, 2, 3, 4))
    slots.assign(tasks("short", 5))

    assert begun(slots) == [1, 5, 2]
    slots.end(task("long", 1), 1.0)
    assert begun(slots) == [3]


def test_slots_are_reserved_for_expected_queues() -> None:
    """Up to half of the slots stay free for expected queues that occupy none."""
    slots = ServiceSlots(4, Quarantine(), lambda: math.inf)
    slots.expect(["busy", "idle", "another", "third"])
    slots.assign(tasks("busy", 1, 2, 3, 4))

    assert begun(slots) == [1, 2]
    slots.assign(tasks("idle", 5))
    assert begun(slots) == [5]


def test_half_of_the_slots_may_be_claimed_for() -> None:
    """However many queues are expected, a queue's tasks are claimed for half of the slots."""
    slots = ServiceSlots(10, Quarantine(), lambda: math.inf)
    slots.expect([f"queue{number}" for number in range(12)])

    assert slots.claimable("queue0", ["queue0"], {}, ahead=False) == 5


def test_a_queue_claims_its_share_beside_fast_tasks() -> None:
    """If the tasks of another queue are fast, a queue claims for its part of the slots, even if they are occupied."""
    slots = ServiceSlots(10, Quarantine(), lambda: math.inf)
    for number in range(30):
        slots.assign(tasks("fast", number))
        assert begun(slots) == [number]
        slots.end(task("fast", number), 0.001)
    slots.assign(tasks("fast", *range(100, 108)))
    assert begun(slots) == [*range(100, 108)]

    assert slots.claimable("other", ["other"], {}, ahead=False) == 5


def test_forced_tasks_go_first() -> None:
    """A forced task begins before the others and isn't withdrawn."""
    slots = ServiceSlots(1, Quarantine(), lambda: math.inf)
    slots.assign(tasks("default", 1, 2))
    slots.assign(tasks("default", 3), forced=True)

    assert [one.id for one in slots.withdraw(["default"])] == [1, 2]
    assert begun(slots) == [3]


def test_suspects_run_one_at_a_time() -> None:
    """Two suspects never run at the same time, but other tasks may run beside a suspect."""
    quarantine = Quarantine()
    end = ProcessEnd(service="default", number=1, how="ended", intended=False)
    slots = ServiceSlots(3, quarantine, lambda: math.inf)
    suspects = tasks("default", 1, 2)
    for suspect in suspects:
        quarantine.process_died(suspect, "default", end, [])
    slots.assign(suspects)
    slots.assign(tasks("default", 3))

    assert begun(slots) == [1, 3]
    slots.end(suspects[0], 1.0)
    assert begun(slots) == [2]


def test_a_queue_that_got_no_slot_asks_for_tasks_at_its_last_end() -> None:
    """If other queues leave a queue no slot, the end of its last task asks for more; nothing else would."""
    slots = ServiceSlots(4, Quarantine(), lambda: math.inf)
    for one in tasks("fast", *range(9)):
        slots.assign([one])
        assert begun(slots) == [one.id]
        slots.end(one, 0.0)
    slots.assign(tasks("fast", 10))
    slots.assign([*tasks("slow", 11, 12, 13), *tasks("slower", 14, 15)])
    assert begun(slots) is not None
    slots.more_is_due(True)

    assert slots.claimable("fast", ["fast"], {}, ahead=True) == 0
    assert slots.end(task("fast", 10), 0.0)


def test_closed_slots_end_with_the_attempts_in_flight() -> None:
    """After closing, no task begins; begin() returns None when no task runs any more."""
    slots = ServiceSlots(1, Quarantine(), lambda: math.inf)
    slots.assign(tasks("default", 1, 2))
    assert begun(slots) == [1]

    assert [one.id for one in slots.close()] == [2]

    assert begun(slots) == []
    slots.end(task("default", 1), 1.0)
    assert begun(slots) is None


def test_an_attempt_ends_once() -> None:
    """Ending the same attempt twice frees only one slot."""
    slots = ServiceSlots(1, Quarantine(), lambda: math.inf)
    slots.assign(tasks("default", 1, 2, 3))
    slots.more_is_due(True)
    assert begun(slots) == [1]

    assert slots.end(task("default", 1), 1.0) is True
    assert slots.end(task("default", 1), 1.0) is False
    assert begun(slots) == [2]
    assert [one.id for one in slots.running()] == [2]


def test_what_waits_for_a_slot_is_known() -> None:
    """The claimed tasks that have no slot are told apart from those that have one."""
    slots = ServiceSlots(1, Quarantine(), lambda: math.inf)
    slots.assign(tasks("default", 1, 2))
    slots.assign(tasks("other", 3), forced=True)
    assert begun(slots) == [3]

    assert sorted(slots.waiting()) == [1, 2]


def budget(number: int = 100, seconds: float = 1.0) -> AheadBudget:
    """Return what may be delivered ahead."""
    return AheadBudget(number=number, size=1 << 20, seconds=seconds)


def short(slots: ServiceSlots, *queues: str) -> None:
    """Let the slots know that the tasks of these queues are short."""
    for queue in queues:
        for number in range(1000, 1030):
            slots.assign(tasks(queue, number))
            slots.begin()
            slots.end(tasks(queue, number)[0], 0.0001)


def test_short_tasks_are_delivered_ahead() -> None:
    """Beyond the slots, short tasks are delivered as far as the budget allows, and take over slots that get free."""
    slots = ServiceSlots(2, Quarantine(), lambda: math.inf)
    short(slots, "short")
    given = tasks("short", *range(1, 11))
    slots.assign(given)
    begun = slots.begin(budget(5))
    assert begun is not None
    assert [(one.task.id, one.is_ahead) for one in begun] == [(n, n > 2) for n in range(1, 8)]
    assert slots.occupied == 2
    for task in given[:5]:
        slots.end(task, 0.0001)
        assert slots.occupied == 2
    slots.end(given[5], 0.0001)
    assert slots.occupied == 1
    slots.end(given[6], 0.0001)
    assert slots.occupied == 0


def test_long_tasks_are_not_delivered_ahead() -> None:
    """A task that may take longer than the budget waits here."""
    slots = ServiceSlots(2, Quarantine(), lambda: math.inf)
    slots.assign(tasks("long", 1, 2, 3))
    begun = slots.begin(budget(seconds=0.02))
    assert begun is not None
    assert [one.task.id for one in begun] == [1, 2]


def test_queues_go_ahead_in_turn() -> None:
    """A queue that has nothing delivered goes before one that has."""
    slots = ServiceSlots(1, Quarantine(), lambda: math.inf)
    short(slots, "one", "two")
    slots.assign(tasks("one", 1, 2, 3))
    slots.assign(tasks("two", 4, 5))
    begun = slots.begin(budget())
    assert begun is not None
    assert [one.task.id for one in begun] == [1, 4, 2, 5, 3]


def test_what_is_given_back_goes_first() -> None:
    """Deliveries that have not begun go back to the head of their queue, in their order, and cost no slot."""
    slots = ServiceSlots(1, Quarantine(), lambda: math.inf)
    short(slots, "short")
    given = tasks("short", *range(1, 6))
    slots.assign(given)
    assert len(slots.begin(budget(3)) or []) == 4
    assert slots.give_back(given[1:4]) == []
    assert [task.id for task in slots.running()] == [1]
    slots.end(given[0], 0.0001)
    assert [begun(slots), slots.occupied] == [[2], 1]
    assert slots.give_back([given[1]]) == []
    assert slots.give_back([given[1]]) == []
    assert slots.occupied == 0
    assert [task.id for task in slots.close()] == [2, 3, 4, 5]


def test_what_is_given_back_after_the_end_is_returned() -> None:
    """When no attempt begins any more, the caller has to release what is given back."""
    slots = ServiceSlots(1, Quarantine(), lambda: math.inf)
    slots.assign(tasks("queue", 1))
    assert begun(slots) == [1]
    slots.close()
    assert [task.id for task in slots.give_back(tasks("queue", 1))] == [1]
    assert slots.begin() is None


def test_a_slot_that_is_reserved_for_another_queue_is_not_kept() -> None:
    """A busy queue gives up the slots that are reserved since it took them, even if it has tasks ahead."""
    slots = ServiceSlots(4, Quarantine(), lambda: math.inf)
    short(slots, "busy")
    given = tasks("busy", *range(1, 31))
    slots.assign(given)
    assert len(slots.begin(budget(20)) or []) == 24
    slots.expect(["busy", "other"])
    slots.end(given[0], 0.0001)
    assert slots.occupied == 3
    slots.end(given[1], 0.0001)
    assert slots.occupied == 3
    slots.assign(tasks("other", 99))
    assert 99 in (begun(slots) or [])


def test_without_a_process_nothing_begins() -> None:
    """While no process serves, tasks wait, and none is claimed."""
    slots = ServiceSlots(2, Quarantine(), lambda: math.inf)
    slots.set_down(True)
    slots.assign(tasks("queue", 1))
    assert slots.begin(budget()) == []
    assert slots.claimable("queue", ["queue"], {}, ahead=True) == 0
    slots.set_down(False)
    assert begun(slots) == [1]


def test_no_more_begins_than_results_may_wait() -> None:
    """What was delivered beyond the slots and the results that wait are limited together."""
    room = 10
    slots = ServiceSlots(2, Quarantine(), lambda: room)
    short(slots, "short")
    given = tasks("short", *range(1, 101))
    slots.assign(given)

    assert not slots.is_held_back()
    assert len(slots.begin(budget()) or []) == 12
    assert slots.is_held_back()
    slots.end(given[0], 0.0001)
    room -= 1
    assert slots.begin(budget()) == []
    assert slots.is_held_back()
    room += 1
    assert len(slots.begin(budget()) or []) == 1
    slots.end(given[1], 0.0001)
    slots.end(given[2], 0.0001)
    assert len(slots.begin(budget(1)) or []) == 1
    assert not slots.is_held_back()


def test_slots_stay_free_while_too_many_results_wait() -> None:
    """If as many results wait as a kill may repeat, no task begins, not even one that is forced."""
    room = -1
    slots = ServiceSlots(1, Quarantine(), lambda: room)
    slots.assign(tasks("queue", 1))
    slots.assign(tasks("queue", 2), forced=True)
    assert begun(slots) == []
    assert slots.is_held_back()
    room = 0
    assert begun(slots) == [2]

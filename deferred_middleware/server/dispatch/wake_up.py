"""What wakes the scheduler's thread, and what it is to look at.

Any thread may wake the scheduler: the API that has added a task, a worker that can take more tasks, an attempt whose
task is due again. All of them share one :class:`WakeUp` with the scheduler.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable


class WakeUp:
    """A flag that any thread sets and that the scheduler's thread waits for."""

    def __init__(self) -> None:
        # Guards the other three.
        self._condition = threading.Condition()
        self._is_set = False
        self._stopping = False
        self._queues_to_withdraw: set[str] = set()

    def wake(self) -> None:
        """Have the scheduler look for due tasks now."""
        with self._condition:
            self._is_set = True
            self._condition.notify()

    def withdraw(self, queues: Iterable[str]) -> None:
        """Have the scheduler give back the tasks of ``queues`` that are claimed and not begun, and then look again.

        The limits of these queues have changed, so these tasks may have to wait.
        """
        with self._condition:
            self._queues_to_withdraw.update(queues)
            self._is_set = True
            self._condition.notify()

    def stop(self) -> None:
        """End the scheduler's waits, now and from now on."""
        with self._condition:
            self._stopping = True
            self._condition.notify()

    def wait(self, seconds: float) -> bool:
        """Wait to be woken, at most for ``seconds``, and clear the flag; return false if the scheduler stops."""
        with self._condition:
            if not self._is_set and not self._stopping and seconds > 0:
                self._condition.wait(seconds)
            self._is_set = False
            return not self._stopping

    def pause(self, seconds: float) -> None:
        """Wait for ``seconds``, however often the scheduler is woken; :meth:`stop` ends the wait."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopping, seconds)

    def take_queues_to_withdraw(self) -> set[str]:
        """Return the queues of all calls of :meth:`withdraw` since the last time."""
        with self._condition:
            queues, self._queues_to_withdraw = self._queues_to_withdraw, set()
            return queues

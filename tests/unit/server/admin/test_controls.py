"""What the tests of an app do to the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.server.admin.controls import ControlError, TestControls
from deferred_middleware.server.config.virtual_clock import VirtualClock
from deferred_middleware.server.store.records import Lane, NewTask
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import completion


class Setting:
    """Controls of a store with a virtual clock."""

    def __init__(self, path: Path) -> None:
        self.clock = VirtualClock()
        self.store = TaskStore(path, clock=self.clock.time, elapsed=self.clock.elapsed)
        self.wakes = 0
        self.forgotten = 0
        self.controls = TestControls(
            self.store,
            self.clock,
            self._wake,
            forget_queues=self._forget,
            name_of=lambda name: name if name in ("default", "mail") else None,
        )

    def _wake(self) -> None:
        self.wakes += 1

    def _forget(self) -> None:
        self.forgotten += 1

    def ask(self, name: str, **content: Any) -> dict[str, Any]:
        """Make a request."""
        return self.controls.answer(name, content)

    def add(self, queue: str = "default", *, seconds: float = 0) -> None:
        """Add a task that is due in so many seconds."""
        eta_usec = int((self.clock.time() + seconds) * 1e6)
        self.store.add([NewTask(queue=queue, url="/", eta_usec=eta_usec)])

    def run(self, queue: str = "default") -> None:
        """Run the tasks of a queue."""
        now_usec = int(self.clock.time() * 1e6)
        claimed = self.store.claim({Lane(queue, ""): 100}, now_usec)
        assert all(self.store.complete([completion(task) for task in claimed]))


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    """Open a store."""
    setting = Setting(tmp_path / "tasks.sqlite")
    yield setting
    setting.controls.stop()
    setting.store.close()


def test_waiting_for_an_empty_queue(setting: Setting) -> None:
    """The answer comes when the last task is done."""
    assert setting.ask("wait", timeout_seconds=5) == {"empty": True, "tasks": 0}
    setting.add()
    setting.add("mail", seconds=3600)
    assert setting.ask("wait", timeout_seconds=0) == {"empty": False, "tasks": 2}
    assert setting.ask("wait", timeout_seconds=0, queue="default") == {"empty": False, "tasks": 1}
    threading.Timer(0.05, setting.run).start()
    assert setting.ask("wait", timeout_seconds=20, queue="default") == {"empty": True, "tasks": 0}
    assert setting.ask("wait", timeout_seconds=0) == {"empty": False, "tasks": 1}
    assert setting.ask("wait", timeout_seconds=1, due_only=True) == {"empty": True, "tasks": 0}


def test_a_running_task_is_waited_for(setting: Setting) -> None:
    """A queue with a task in flight is not empty."""
    setting.add()
    setting.store.claim({Lane("default", ""): 1}, int(setting.clock.time() * 1e6))
    assert setting.ask("wait", timeout_seconds=0, due_only=True) == {"empty": False, "tasks": 1}


def test_stopping_ends_a_wait(setting: Setting) -> None:
    """The server does not stop late because a test waits."""
    setting.add()
    threading.Timer(0.05, setting.controls.stop).start()
    assert setting.ask("wait", timeout_seconds=60) == {"empty": False, "tasks": 1}


def test_a_reset(setting: Setting) -> None:
    """Everything is deleted, and the scheduler hears of it."""
    for _ in range(3):
        setting.add()
    assert setting.ask("reset") == {"deleted": 3}
    assert (setting.forgotten, setting.wakes) == (1, 1)
    assert setting.ask("wait", timeout_seconds=0)["tasks"] == 0


def test_the_clock(setting: Setting) -> None:
    """Time passes at once, and stands still."""
    before = setting.controls.answer("clock", None)
    assert (before["frozen"], round(before["ahead_seconds"])) == (False, 0)
    assert setting.wakes == 0
    moved = setting.ask("clock", advance_seconds=3600)
    assert round(moved["ahead_seconds"]) == 3600
    assert setting.wakes == 1
    frozen = setting.ask("clock", frozen=True)
    assert frozen["frozen"] is True
    assert setting.ask("clock", advance_seconds=2.5)["now_seconds"] == pytest.approx(frozen["now_seconds"] + 2.5)
    assert setting.ask("clock", frozen=False)["frozen"] is False


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wait", {"queue": "unknown"}, "There is no queue 'unknown'"),
        ("wait", {"queue": 5}, "queue a text"),
        ("wait", {"due_only": 1}, "due_only must be true or false"),
        ("wait", {"timeout_seconds": -1}, "timeout_seconds must be a number from 0 to 600"),
        ("wait", {"timeout_seconds": "5"}, "timeout_seconds must be"),
        ("wait", {"timeout_seconds": True}, "timeout_seconds must be"),
        ("wait", {"timeout": 5}, "'timeout' is not known here; queue, timeout_seconds, due_only is"),
        ("wait", None, "Use POST"),
        ("reset", None, "Use POST"),
        ("reset", {"all": True}, "'all' is not known here"),
        ("clock", {"advance_seconds": float("nan")}, "advance_seconds must be"),
        ("clock", {"advance_seconds": -5}, "advance_seconds must be"),
        ("clock", {"advance_seconds": 1e30}, "advance_seconds must be"),
        ("clock", {"frozen": "yes"}, "frozen must be true or false"),
    ],
)
def test_a_request_that_is_wrong(setting: Setting, name: str, content: dict[str, Any] | None, message: str) -> None:
    """The error says what is."""
    with pytest.raises(ControlError) as caught:
        setting.controls.answer(name, content)
    assert message in str(caught.value)
    assert not setting.clock.is_frozen

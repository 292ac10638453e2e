"""The alarm, which makes the retries of enqueues that nobody waits for."""

from __future__ import annotations

import logging
import queue
import threading

import pytest

from deferred_middleware.enqueue.background import Alarm

WAIT_SECONDS = 30


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_a_function_that_raises_stops_no_other(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """It is logged. What is due later is called all the same."""
    alarm = Alarm()
    called = threading.Event()

    def fail() -> None:
        raise error("on purpose")

    with caplog.at_level(logging.ERROR):
        alarm.call_later(0, fail)
        alarm.call_later(0.01, called.set)
        assert called.wait(WAIT_SECONDS)
    (record,) = caplog.records
    assert "delayed function failed" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is error


def test_functions_are_called_when_they_are_due() -> None:
    """The order is that of their times, not that of the calls."""
    alarm = Alarm()
    order: queue.SimpleQueue[str] = queue.SimpleQueue()
    alarm.call_later(0.1, lambda: order.put("second"))
    alarm.call_later(0.02, lambda: order.put("first"))
    assert [order.get(timeout=WAIT_SECONDS) for _ in range(2)] == ["first", "second"]


def test_after_a_thread_has_worked_for_it_another_is_started() -> None:
    """A process that was thought to end may go on, and what is scheduled then is called too."""
    alarm = Alarm()
    here: list[threading.Thread] = []
    alarm.work_until(lambda: True)
    done = threading.Event()

    def note() -> None:
        here.append(threading.current_thread())
        done.set()

    alarm.call_later(0, note)
    assert done.wait(WAIT_SECONDS)
    assert here[0] is not threading.current_thread()


def test_a_thread_that_works_for_it_makes_the_calls() -> None:
    """Until it is done, the thread that ends the process makes the calls itself."""
    alarm = Alarm()
    here: list[threading.Thread] = []

    def work() -> bool:
        if not here and not alarm._due:
            alarm.call_later(0.01, lambda: here.append(threading.current_thread()))
        return bool(here)

    alarm.work_until(work)
    assert here == [threading.current_thread()]

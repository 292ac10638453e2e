"""What the server's processes have from whoever started them: signals that can't be missed."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deferred_middleware.server.apps.console import reacting_to
from tests.support.running import signal_thread

WAITS_IN_THE_SYSTEM = """
import queue, signal, sys, threading, time
from deferred_middleware.server.apps.console import reacting_to

events = queue.SimpleQueue()
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
with reacting_to([signal.SIGTERM, signal.SIGHUP], events.put):
    print("ready", flush=True)
    print(*sorted([events.get(), events.get()]), flush=True)  # signals that wait come in the order of their numbers
"""


@pytest.mark.parametrize("main_thread", [True, False])
def test_a_signal_is_heard_in_whichever_thread_it_arrives(main_thread: bool) -> None:
    """A main thread that waits in the operating system need not be interrupted."""
    with subprocess.Popen([sys.executable, "-c", WAITS_IN_THE_SYSTEM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            others = [int(entry.name) for entry in Path(f"/proc/{process.pid}/task").iterdir()]
            others.remove(process.pid)
            thread = process.pid if main_thread else min(others)
            signal_thread(process.pid, thread, signal.SIGTERM)
            signal_thread(process.pid, thread, signal.SIGHUP)
            assert process.stdout.readline() == "1 15\n"
            assert process.wait(30) == 0
        finally:
            process.kill()


FORKS = """
import multiprocessing, queue, signal, time
from deferred_middleware.server.apps.console import reacting_to

heard = queue.SimpleQueue()
with reacting_to([signal.SIGTERM], heard.put):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
    child.start()
    child.terminate()
    child.join(30)
    print(child.exitcode, heard.empty())
"""


def test_a_signal_to_a_forked_child_is_the_childs() -> None:
    """An app that ends a process of its own doesn't end itself."""
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "-15 True\n"


def test_what_was_there_before_is_there_again() -> None:
    """Handlers, the descriptor and the thread; and a signal that was ignored stays so."""
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    usual = signal.getsignal(signal.SIGUSR1)
    try:
        with reacting_to([signal.SIGHUP, signal.SIGUSR1], heard.put):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard.get(timeout=30) == signal.SIGUSR1
        assert signal.getsignal(signal.SIGUSR1) == usual
        descriptor = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(descriptor)
        assert descriptor == -1
        assert "signals" not in {thread.name for thread in threading.enumerate()}
        assert heard.empty()
    finally:
        signal.signal(signal.SIGHUP, before)

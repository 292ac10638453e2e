"""Real process trees below a process that adopts orphans, as the first process of a container does."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support.repository import ROOT

WAIT_SECONDS = 30.0
# Linux lets a process adopt the orphans below it without being process 1 (prctl(2), PR_SET_CHILD_SUBREAPER).
PROGRAM = """
import ctypes, os, signal, subprocess, sys, time
from deferred_middleware.server.first_process import run_below_first_process
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)

def run():
{body}

sys.exit(run_below_first_process(run))
"""
ORPHAN = """
    orphan = subprocess.check_output(["sh", "-c", "sleep 0.1 >/dev/null & echo $!"], text=True).strip()
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{orphan}"):
        if time.monotonic() > deadline:
            return 1
        time.sleep(0.02)
    return 0
"""
SIGNALLED = """
    def handle(signum, frame):
        print(signal.Signals(signum).name, flush=True)
        sys.exit(7)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"):
        signal.signal(getattr(signal, name), handle)
    print("ready", flush=True)
    time.sleep(20)
"""


def start(body: str) -> subprocess.Popen[str]:
    """Start a first process whose child runs ``body``."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(body=body)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("    return 0", 0),
        ("    return 3", 3),
        ("    sys.exit(4)", 4),
        ("    os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
        (ORPHAN, 0),
    ],
)
def test_the_childs_status_is_returned(body: str, status: int) -> None:
    """The first process ends with the status of its child; meanwhile it reaps processes that it adopts."""
    with start(body) as first:
        assert first.wait(WAIT_SECONDS) == status


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(signum: signal.Signals) -> None:
    """A signal reaches the child once, and decides how both end."""
    with start(SIGNALLED) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        first.send_signal(signum)
        assert first.wait(WAIT_SECONDS) == 7
        assert first.stdout.read() == f"{signum.name}\n"

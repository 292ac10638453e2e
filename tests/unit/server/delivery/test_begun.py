"""The memory that says which tasks have begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from deferred_middleware.server.delivery.begun import ENDED, NOT_BEGUN, Begun, open_memory

WRITE_AND_DIE = """
import os, signal, sys
from deferred_middleware.server.delivery.begun import Begun
begun = Begun(int(sys.argv[1]))
begun.slots[2] = 12.5
begun.slots[3] = -1.0
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("has_memfd", [True, False])
def test_it_outlives_the_process_that_wrote_it(monkeypatch: pytest.MonkeyPatch, has_memfd: bool) -> None:
    """What a child process has written is there after it was killed, also on systems without memfd_create()."""
    if not has_memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    memory = open_memory(4)
    begun = Begun(os.dup(memory))
    child = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(memory)], pass_fds=[memory])
    os.close(memory)
    assert child.returncode == -signal.SIGKILL
    assert list(begun.slots) == [NOT_BEGUN, NOT_BEGUN, 12.5, ENDED]
    begun.close()

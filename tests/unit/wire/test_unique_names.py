"""Tests that generated names and nonces don't repeat in processes that are copies of each other."""

from __future__ import annotations

import os
import random

import pytest

from deferred_middleware import call, defer
from deferred_middleware.enqueue.prepare import prepare
from deferred_middleware.testing import DeferredTasks
from tests.support import sample

PROCESSES = 4


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_processes_choose_different_names(deferred_tasks: DeferredTasks) -> None:
    """Workers that a server forks after a first call choose other names and sign with other nonces.

    So do processes in containers, which have the same PID, and those whose app seeds the module random.
    """
    defer(sample.note, 1)
    random.seed(0)
    read, write = os.pipe()
    for _ in range(PROCESSES):
        if os.fork() == 0:
            try:
                random.seed(0)
                prepared = prepare(call(sample.note, 2))
                os.write(write, f"{prepared.name} {prepared.message.signature}\n".encode())
            finally:
                os._exit(0)  # whatever happens: the child must not go on with the tests
    os.close(write)
    for _ in range(PROCESSES):
        os.wait()
    with os.fdopen(read) as stream:
        lines = stream.read().splitlines()

    names = {line.split()[0] for line in lines}
    assert len(names) == len(lines) == PROCESSES
    assert "None" not in names
    assert len(set(lines)) == PROCESSES

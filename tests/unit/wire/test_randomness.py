"""Tests of random numbers: none comes twice, whoever asks."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from deferred_middleware.wire.randomness import Source

COUNT = 3000


def test_numbers_are_hexadecimal_and_differ() -> None:
    """Each is 32 digits of its own, over more than one fetch from the system."""
    source = Source()

    numbers = [source.hex32() for _ in range(COUNT)]

    assert len(set(numbers)) == COUNT
    assert all(re.fullmatch("[0-9a-f]{32}", number) for number in numbers)


def test_threads_share_none() -> None:
    """Threads that ask at once get different ones."""
    source = Source()

    with ThreadPoolExecutor(8) as threads:
        numbers = list(threads.map(lambda _: source.hex32(), range(COUNT)))

    assert len(set(numbers)) == COUNT


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # there are pytest's own threads
@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["by Python", "behind Python's back"])
def test_a_forked_process_has_its_own(fork: Callable[[], int]) -> None:
    """Of what waited in the parent the child uses nothing, also where a server forks without telling Python."""
    source = Source()
    source.hex32()
    reader, writer = os.pipe()

    child = fork()
    if child == 0:  # pragma: no cover - in the child
        os.write(writer, source.hex32().encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)

    assert len(theirs) == 32
    assert theirs not in [source.hex32() for _ in range(COUNT)]

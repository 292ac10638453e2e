"""Tests of the nonces in signatures: no nonce is used twice across threads and processes."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from deferred_middleware.config.keys import SecretKey
from deferred_middleware.wire.signature import Keyring

COUNT = 3000
SIGNER = Keyring([SecretKey("k" * 32)], "app").signer(path=b"/", queue="default", headers={}, lifetime_seconds=60)


def nonce() -> str:
    """Return the nonce of a new signature."""
    signature = SIGNER.sign(None, b"a payload", 0.0, 1_800_000_000.0)
    return signature.partition(";n=")[2].partition(";")[0]


def test_nonces_are_hexadecimal_and_differ() -> None:
    """Each signature has a nonce of 24 hexadecimal digits, and no two are equal."""
    nonces = [nonce() for _ in range(COUNT)]

    assert len(set(nonces)) == COUNT
    assert all(re.fullmatch("[0-9a-f]{24}", one) for one in nonces)


def test_threads_share_no_nonce() -> None:
    """Threads that sign concurrently use different nonces."""
    with ThreadPoolExecutor(8) as threads:
        nonces = list(threads.map(lambda _: nonce(), range(COUNT)))

    assert len(set(nonces)) == COUNT


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # pytest has its own threads
@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["by Python", "behind Python's back"])
def test_a_forked_process_has_its_own_nonces(fork: Callable[[], int]) -> None:
    """A child process uses none of its parent's nonces, even if a server forks without Python's knowledge."""
    nonce()
    reader, writer = os.pipe()

    child = fork()
    if child == 0:  # pragma: no cover - runs in the child
        try:
            os.write(writer, nonce().encode())
        finally:
            os._exit(0)  # whatever happens: the child must not go on with the tests
    os.waitpid(child, 0)
    theirs = os.read(reader, 100).decode()
    os.close(reader)
    os.close(writer)

    assert len(theirs) == 24
    assert theirs not in [nonce() for _ in range(COUNT)]

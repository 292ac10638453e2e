"""Enqueues outside of any request: a failure that nobody asked about is reported, also at the end of the process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[1] / "unit"
START = """
    from google.appengine.api import apiproxy_stub_map
    from google.appengine.runtime import default_api_stub

    stub = default_api_stub.DefaultApiStub()
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
    stub.SetUseRequestSecurityTicketForThread(True)

    import sample
    from deferred_middleware import defer_async

"""


def run(script: str, **environ: str) -> tuple[int, str]:
    """Run a script whose queue nobody answers for; return its exit status and what it wrote to standard error."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and nobody listens, so that a connection is refused
        own = {
            "API_HOST": "127.0.0.1",
            "API_PORT": str(nobody.getsockname()[1]),
            "HTTP_X_APPENGINE_API_TICKET": "ticket",
            "HTTP_HOST": "app.example.com",
            "DEFERRED_REQUIRE_SIGNATURE": "false",
            "PYTHONPATH": os.pathsep.join([str(UNIT), *sys.path]),
            **environ,
        }
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(START + script)],
            env={**os.environ, **own},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize("seconds", ["0", "0.3"], ids=["one attempt", "several"])
@pytest.mark.parametrize("keep", ["future = ", ""], ids=["kept", "dropped"])
def test_a_process_that_ends_tells(keep: str, seconds: str) -> None:
    """A script that ends with an enqueue under way waits for it, and tells that it failed and of which call."""
    status, told = run(f"    {keep}defer_async(sample.note, 1)", DEFERRED_ENQUEUE_SECONDS=seconds)

    assert status == 0, told
    assert "sample/note was not enqueued to queue 'default'" in told
    assert "nobody asked" in told
    assert told.count("nobody asked") == 1


def test_a_failure_is_told_when_its_future_goes() -> None:
    """A process that goes on tells as soon as nobody can ask any more."""
    script = """
    import gc, sys
    future = defer_async(sample.note, 1)
    future.wait()
    del future
    gc.collect()
    print("going on", file=sys.stderr)
    """
    status, told = run(script, DEFERRED_ENQUEUE_SECONDS="0")

    assert status == 0, told
    assert 0 <= told.find("nobody asked") < told.find("going on")


def test_who_has_asked_is_not_told_again() -> None:
    """A failure that the script has seen is not reported."""
    script = """
    try:
        defer_async(sample.note, 1).result()
    except Exception as error:
        print(type(error).__name__)
    """
    status, told = run(script, DEFERRED_ENQUEUE_SECONDS="0")

    assert status == 0, told
    assert "nobody asked" not in told

"""Outside requests, a failed enqueue that nobody waits for is logged, also at the end of the process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb

from tests.support.faults import BOUND_SECONDS, ApplicationError, Closed, Code, FaultyServer, Held, Results, RpcError
from tests.support.repository import ROOT

START = """
    from google.appengine.api import apiproxy_stub_map
    from google.appengine.runtime import default_api_stub

    stub = default_api_stub.DefaultApiStub()
    apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", stub)
    stub.SetUseRequestSecurityTicketForThread(True)

    from tests.support import sample
    from deferred_middleware import defer_async

"""


def start(script: str, port: int, **environ: str) -> subprocess.Popen[str]:
    """Start a script that uses the queue on ``port``."""
    own = {
        "API_HOST": "127.0.0.1",
        "API_PORT": str(port),
        "HTTP_X_APPENGINE_API_TICKET": "ticket",
        "HTTP_HOST": "app.example.com",
        "DEFERRED_REQUIRE_SIGNATURE": "false",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        **environ,
    }
    source = textwrap.dedent(START) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", source], env={**os.environ, **own}, stderr=subprocess.PIPE, text=True
    )


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait until a script ends; return its exit status and its standard error."""
    with process:
        try:
            _, told = process.communicate(timeout=BOUND_SECONDS)
        finally:
            process.kill()
    return process.returncode, told


def run(script: str, **environ: str) -> tuple[int, str]:
    """Run a script without a reachable queue; return its exit status and its standard error."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # no listen(), so that connections are refused
        return end_of(start(script, nobody.getsockname()[1], **environ))


@pytest.mark.parametrize("seconds", ["0", "0.3"], ids=["one attempt", "several"])
@pytest.mark.parametrize("keep", ["future = ", ""], ids=["kept", "dropped"])
def test_a_process_that_ends_tells(keep: str, seconds: str) -> None:
    """If a script ends during an enqueue, it waits for it, and logs the failure with the call's name."""
    status, told = run(f"{keep}defer_async(sample.note, 1)", DEFERRED_ENQUEUE_SECONDS=seconds)

    assert status == 0, told
    assert "tests.support.sample/note was not enqueued to queue 'default'" in told
    assert told.count("nothing waited") == 1
    assert "shutdown" not in told


def test_a_failure_is_told_when_its_future_goes() -> None:
    """In a process that continues, a failure is logged as soon as the future is deleted."""
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
    assert 0 <= told.find("nothing waited") < told.find("going on")


def test_who_has_asked_is_not_told_again() -> None:
    """A failure that the script has already got is not logged."""
    script = """
    try:
        defer_async(sample.note, 1).result()
    except Exception as error:
        print(type(error).__name__)
    """
    status, told = run(script, DEFERRED_ENQUEUE_SECONDS="0")

    assert status == 0, told
    assert "nothing waited" not in told


@pytest.fixture
def queue() -> Iterator[FaultyServer]:
    """Run a task queue that fails on demand."""
    server = FaultyServer()
    yield server
    server.close()


WRAP = """
from google.appengine.api import wrap_wsgi_app
wrap_wsgi_app(lambda environ, start_response: [])
stub.thread_pool = type(stub.thread_pool)()  # the other one's threads are of the module that it has reloaded
"""


@pytest.mark.parametrize("before", ["", WRAP], ids=["script", "after wrap_wsgi_app"])
def test_a_process_that_ends_goes_on_trying(queue: FaultyServer, before: str) -> None:
    """If a script ends while the queue fails temporarily, it ends after its calls are enqueued, and logs nothing."""
    failed = RpcError(remote_api_pb.RpcError.UNKNOWN)
    queue.fail(Results(Code.TRANSIENT_ERROR), Closed(), failed, Results(Code.TRANSIENT_ERROR, added=True))
    script = """
    futures = [defer_async(sample.note, number) for number in range(2)]
    futures[0].add_done_callback(lambda _: futures.append(defer_async(sample.pair, 1)))
    """

    status, told = end_of(start(before + textwrap.dedent(script), queue.port))

    assert (status, told) == (0, "")
    assert len(queue.tasks) == 3
    assert len(queue.attempts) > 5


def test_a_process_that_ends_finds_the_bad_one_of_several(queue: FaultyServer) -> None:
    """If a joint RPC is refused, its calls are retried one at a time, and all but the invalid one are enqueued."""
    queue.fail(ApplicationError(Code.INVALID_URL), None, ApplicationError(Code.INVALID_URL))
    script = """
    from deferred_middleware.enqueue import futures
    from deferred_middleware.enqueue.batch import RequestBatch
    with RequestBatch():
        kept = [defer_async(sample.note, number) for number in range(3)]
    """

    status, told = end_of(start(script, queue.port))

    assert status == 0, told
    assert (
        told.count("tests.support.sample/note was not enqueued to queue 'default'")
        == told.count("nothing waited") * 2
        == 2
    )
    assert len(queue.tasks) == 2


def test_a_pool_that_can_start_no_thread(queue: FaultyServer) -> None:
    """If the thread pool raises but has already taken the call, the call is retried and enqueued once."""
    script = """
    submit = stub.thread_pool.submit

    def complain(*args, **kwargs):
        stub.thread_pool.submit = submit
        submit(*args, **kwargs)
        raise RuntimeError("can't start new thread")

    stub.thread_pool.submit = complain
    future = defer_async(sample.note, 1)
    """

    assert end_of(start(script, queue.port)) == (0, "")
    assert len(queue.attempts) == 2
    assert len(queue.tasks) == 1


def test_a_process_that_is_stopped_tells(queue: FaultyServer) -> None:
    """Ctrl-C while a process waits for its calls ends it at once, and each of the calls is logged."""
    held = Held()
    queue.fail(held, lasting=True)
    script = """
    import sys
    defer_async(sample.note, 1)
    defer_async(sample.pair, 1, 2)
    print("that was all", file=sys.stderr, flush=True)
    """
    process = start(script, queue.port)
    assert process.stderr is not None
    assert process.stderr.readline() == "that was all\n"

    # The first signal may come before the process waits.
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    _, told = end_of(process)
    held.let_go.set()

    for call in ("note", "pair"):
        assert told.count(f"tests.support.sample/{call} is not known to be enqueued: the process was stopped") == 1


def test_a_forked_process_leaves_it_to_its_parent(queue: FaultyServer) -> None:
    """A forked child neither waits for its parent's pending calls nor logs them."""
    held = Held()
    queue.fail(held)
    script = """
    import os, signal, sys, warnings
    warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
    future = defer_async(sample.note, 1)
    if os.fork():
        print("the child has ended:", os.wait()[1], file=sys.stderr, flush=True)
    else:
        signal.alarm(30)
    """
    process = start(script, queue.port)
    assert process.stderr is not None

    assert process.stderr.readline() == "the child has ended: 0\n"
    held.let_go.set()

    assert end_of(process) == (0, "")
    assert len(queue.tasks) == 1

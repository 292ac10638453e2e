"""On a full disk (a small one) adds fail with a clear error, everything else works, and no restart is needed."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.killing.found import look
from tests.support.running import TELL, WAIT_SECONDS, Recorder, Serve, Server

APP = (
    TELL
    + """
import json
from google.appengine.api import taskqueue, wrap_wsgi_app

def handle(environ, start_response):
    answer = ""
    if environ["PATH_INFO"] == "/add":
        name = json.loads(environ["wsgi.input"].read())
        try:
            taskqueue.add(name=name, url="/work", payload="x" * 10_000)
        except taskqueue.Error as error:
            answer = "%s: %s" % (type(error).__name__, error)
    else:
        tell(ran=environ["HTTP_X_APPENGINE_TASKNAME"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer.encode()]

app = wrap_wsgi_app(handle)
"""
)
DISK_MB = 32
RUN = 300


@pytest.fixture
def disk() -> Iterator[Path]:
    """Mount a small file system.

    The mount point isn't in pytest's folder: later runs empty that folder, and would fail on a leftover mount.
    """
    disk = Path(tempfile.mkdtemp(prefix="deferred-disk-"))
    try:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk)]
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"only root may mount a file system: {mounted.stderr.strip()}")
        try:
            yield disk
        finally:
            # If a failure leaves a server running, its open files stay available until it ends.
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
    finally:
        disk.rmdir()


def fill(path: Path) -> None:
    """Write until the disk has no space left."""
    with path.open("wb", buffering=0) as ballast:
        try:
            while ballast.write(bytes(4096)):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def command(server: Server, disk: Path, *arguments: str) -> str:
    """Run a ``deferred-middleware`` command, and return its output."""
    ran = server.command(*arguments, f"--data-dir={disk / 'data'}")
    assert ran.returncode == 0, ran.stdout + ran.stderr + server.output
    return ran.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_full_disk(make_server: Serve, recorder: Recorder, disk: Path, tmp_path: Path) -> None:
    """On a full disk an add fails clearly, stored tasks run and are deleted, and adds work again once space is free."""
    server = make_server(APP, arguments=[f"--data-dir={disk / 'data'}"]).start()
    command(server, disk, "pause", "default")
    acknowledged = [f"before-{number}" for number in range(RUN)]
    assert {server.post("/add", name) for name in acknowledged} == {""}

    fill(disk / "ballast")
    refused = ""
    for number in range(1000):
        # The log file may still have unused space for a few adds.
        refused = server.post("/add", f"at the edge {number}".replace(" ", "-"))
        if refused:
            break
        acknowledged.append(f"at-the-edge-{number}")
    assert refused.startswith("TransientError: the task store failed: The disk is full, so that no task can be taken")
    assert str(disk / "data") in refused

    deleted = acknowledged.pop()
    (task,) = [
        task for task in json.loads(command(server, disk, "tasks", "--json"))["tasks"] if task["name"] == deleted
    ]
    command(server, disk, "delete", str(task["id"]))
    command(server, disk, "resume", "default")
    assert sorted(recorder.next()["ran"] for _ in acknowledged) == sorted(acknowledged)
    command(server, disk, "drain", "--timeout=50")
    assert "The disk is full" in server.post("/add", "still-refused")

    (disk / "ballast").unlink()
    until = time.monotonic() + WAIT_SECONDS
    while server.post("/add", "after"):
        assert time.monotonic() < until, server.output
    assert recorder.next()["ran"] == "after"
    command(server, disk, "drain")
    assert recorder.is_silent(0)
    assert server.stop() == 0
    assert look(disk / "data", tmp_path / "found").finished == {*acknowledged, "after"}


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_disk_full_of_tasks(make_server: Serve, recorder: Recorder, disk: Path) -> None:
    """If the tasks themselves fill the disk, a purge gives the space back, and adds are taken without a restart."""
    server = make_server(APP, arguments=[f"--data-dir={disk / 'data'}"]).start()
    command(server, disk, "pause", "default")
    refused = ""
    stored = 0
    while not refused:
        refused = server.post("/add", f"filling-{stored}")
        stored += not refused
        assert stored < 10_000, "32 MB never filled up"
    assert "The disk is full" in refused

    command(server, disk, "purge", "default", "--yes")
    until = time.monotonic() + WAIT_SECONDS
    while refused := server.post("/add", "after"):
        assert time.monotonic() < until, f"{refused}\n{server.output}"
        time.sleep(0.2)  # the space is given back in the background, and nothing announces it
    command(server, disk, "resume", "default")
    assert recorder.next()["ran"] == "after"
    command(server, disk, "drain")
    assert recorder.is_silent(0)
    assert server.stop() == 0

"""The program of ``make demo``: the gallery as two services on the local server, with a dozen photographs."""

from __future__ import annotations

import collections
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

GALLERY = Path(__file__).resolve().parents[2] / "examples" / "gallery"
TIMEOUT_SECONDS = 240

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the demo on free ports, with a data directory whose path identifies its processes."""
    started: list[subprocess.Popen[str]] = []

    def start_demo(*arguments: str, gallery: Path = GALLERY) -> subprocess.Popen[str]:
        command = [sys.executable, "-u", str(gallery / "demo.py"), "--port", "0", "--data-dir", str(tmp_path / "data")]
        process = subprocess.Popen(
            [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        started.append(process)
        return process

    yield start_demo
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
    assert left_behind(tmp_path) == []


def left_behind(tmp_path: Path) -> list[str]:
    """Return the command lines of processes that were started for ``tmp_path`` or that have a file in it open."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if entry.name == str(os.getpid()):
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            opened = [os.readlink(descriptor) for descriptor in (entry / "fd").iterdir()]
        except OSError:
            continue  # the process ended meanwhile
        if str(tmp_path) in command or any(str(tmp_path) in path for path in opened):
            found.append(command)
    return found


def read_until(process: subprocess.Popen[str], fragment: str) -> str:
    """Read the demo's output up to the first line that contains ``fragment``; return that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if fragment in line:
            return line
    raise AssertionError(f"it ended without saying {fragment!r}: {process.communicate()[1]}")


def upload_status(address: str, data: bytes) -> tuple[int, str]:
    """Upload ``data`` as a photograph; return the answer's status and body."""
    body = (
        b'--edge\r\nContent-Disposition: form-data; name="photo"; filename="x.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + data + b"\r\n--edge--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=edge", "Accept": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{address}/photos", body, headers), timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_every_photograph_is_completed_on_the_background_service(start: Start) -> None:
    """With ``--exit`` the demo exits with status 0 after 60 tasks, all run on ``background`` through the middleware."""
    output, errors = start("--exit").communicate(timeout=TIMEOUT_SECONDS)
    assert errors == ""
    rows = re.findall(
        r"^\S+ +tasks/(make_thumbnail|extract_palette) +\S+ \S+ +(\S+) +(\S+) +(\d+) +([\d.]+) +([0-9a-f]{12})$",
        output,
        re.MULTILINE,
    )
    assert [row[0] for row in rows].count("make_thumbnail") == 48
    assert [row[0] for row in rows].count("extract_palette") == 12
    assert {row[1:3] for row in rows} == {("background", "default")}
    assert len({row[5] for row in rows}) == 60
    assert "12 of 12 photographs complete" in output


def test_it_serves_until_it_is_told_to_end(start: Start) -> None:
    """After the table the gallery still answers, and a broken photograph with 400; Ctrl-C ends it with status 0."""
    process = start()
    address = read_until(process, "in a browser").split()[1]
    status, body = upload_status(address, b"this is no photograph")
    assert status == 400
    assert "x.png: it is no JPEG" in body
    with urllib.request.urlopen(address, timeout=60) as page:
        assert b"astronaut.png" in page.read()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_piece_that_cannot_be_made_is_the_reason(start: Start, tmp_path: Path) -> None:
    """If tasks of one photograph fail for good, the others run, and the demo reports the failures with status 1."""
    gallery = tmp_path / "gallery"
    shutil.copytree(GALLERY, gallery)
    with (gallery / "images.py").open("a") as module:
        module.write(
            "\n\n_scale = scale\n\n\ndef scale(data, longest_px):\n"
            "    if longest_px == 640 and inspect(data).width_px == 1411:\n"
            "        raise BadImageError('it is broken on purpose.')\n"
            "    return _scale(data, longest_px)\n"
        )
    demo = start("--exit", gallery=gallery)
    output, errors = demo.communicate(timeout=TIMEOUT_SECONDS)
    assert demo.returncode == 1
    assert "11 of 12 photographs complete: 59 of 60 tasks done" in output
    assert errors.splitlines()[1:] == [
        "demo: not every photograph is complete.",
        "    retina.jpg, 640: failed at attempt 1: it is broken on purpose.",
    ]


def test_the_samples_to_look_at(start: Start, tmp_path: Path) -> None:
    """While the demo serves on, the page has scheduled tasks, one that is retried, and a dead letter."""
    demo = start()
    read_until(demo, "a dead letter.")
    read_until(demo, "Ctrl-C ends it")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while True:
        told = subprocess.run(
            [sys.executable, "-m", "deferred_middleware", "tasks", "--json", "--data-dir", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        states = collections.Counter(
            "retrying" if task["state"] == "ready" and task["retry_count"] else task["state"]
            for task in json.loads(told)["tasks"]
        )
        if states["failed"] and states["retrying"]:
            break
        assert time.monotonic() < deadline, states
        time.sleep(0.2)  # nothing announces the end of an attempt here
    assert states["ready"] == 3
    assert states["failed"] == 1
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_early_end_leaves_nothing_behind(start: Start, signum: signal.Signals) -> None:
    """A signal during the uploads ends the demo with the signal's status, and no process is left."""
    process = start()
    read_until(process, "Uploading")
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert signum.name in errors


def test_a_server_that_does_not_start_is_explained(start: Start, tmp_path: Path) -> None:
    """If the local server fails, the demo shows the end of its output and exits with status 1."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "tasks.sqlite").mkdir()
    process = start("--exit")
    _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 1
    assert "the local server ended with status" in errors
    assert "Its last words were" in errors

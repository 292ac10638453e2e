"""Real app processes: starting, watching, restarting and stopping them."""

from __future__ import annotations

import http.client
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import deferred_middleware
from deferred_middleware.server.apps import process
from deferred_middleware.server.apps.process import (
    AppProcess,
    Deliveries,
    ProcessEvent,
    ProcessReady,
    StartFailed,
    pause_seconds,
)
from deferred_middleware.server.apps.spawn import AppProcessConfig
from deferred_middleware.server.delivery.attempt_result import ProcessEnd
from deferred_middleware.server.delivery.channel_socket import ChannelSocket

WAIT_SECONDS = 30.0

ECHO_PID = """
import os, threading, subprocess, sys

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/wait":
        open("waiting", "w").close()
        os.mkfifo("release") if not os.path.exists("release") else None
        open("release").read()
    if path == "/env":
        body = repr({k: v for k, v in os.environ.items()})
    elif path == "/child":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        body = str(child.pid)
    elif path == "/stdin":
        body = repr(sys.stdin.read())
    else:
        body = str(os.getpid())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]
"""


class Ends:
    """What delivers no tasks, and notes the ends of the processes."""

    def __init__(self) -> None:
        self.noted: queue.SimpleQueue[ProcessEnd] = queue.SimpleQueue()
        self.kill: Callable[[str], None] = lambda reason: None

    def process_serves(self, channel: ChannelSocket, kill: Callable[[str], None]) -> None:
        """Keep what kills the process."""
        self.kill = kill

    def process_ended(self, channel: ChannelSocket, end: ProcessEnd) -> None:
        """Note the end."""
        channel.close()
        self.noted.put(end)


class Running:
    """A service under test: its process, its port, and the reported events."""

    def __init__(self, tmp_path: Path, source: str, *, deliveries: Deliveries | None = None, **changes: Any) -> None:
        (tmp_path / "served.py").write_text(source)
        self.events: queue.SimpleQueue[ProcessEvent] = queue.SimpleQueue()
        self.listener = socket.create_server(("127.0.0.1", 0))
        package = str(Path(deferred_middleware.__file__).parent.parent)
        environ = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": package,
        }
        environ.update(changes.pop("variables", {}))
        self.process = AppProcess(
            AppProcessConfig(
                app="served:app",
                service="default",
                threads=4,
                listener=self.listener,
                environ=environ,
                concurrency=2,
                delivery_token="token",
                api_ticket="ticket",
                default_hostname="127.0.0.1:1",
                **changes,
            ),
            on_event=self.events.put,
            deliveries=deliveries,
        )

    def start(self) -> ProcessEvent:
        """Start the process and return the first event."""
        self.process.start()
        return self.events.get(timeout=WAIT_SECONDS)

    def connection(self) -> http.client.HTTPConnection:
        """Return a new connection to the service."""
        host, port = self.listener.getsockname()
        return http.client.HTTPConnection(host, port, timeout=WAIT_SECONDS)

    def get(self, path: str = "/") -> str:
        """Return the body of the app's response."""
        return self.ask(path)[1]

    def ask(self, path: str) -> tuple[int, str]:
        """Return the status and the body of the app's response."""
        connection = self.connection()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


Start = Callable[..., Running]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Return a function that makes a service from a source; the service is stopped after the test."""
    monkeypatch.chdir(tmp_path)
    made: list[Running] = []

    def make(source: str = ECHO_PID, **changes: Any) -> Running:
        made.append(Running(tmp_path, source, **changes))
        return made[-1]

    yield make
    for service in made:
        service.process.stop()
        service.listener.close()


def await_true(condition: Callable[[], bool]) -> None:
    """Poll until ``condition`` holds; fail if it takes too long."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        os.sched_yield()


def is_alive(pid: int) -> bool:
    """Return whether the process runs; a zombie doesn't count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # ProcessLookupError: the process ended after the file was opened
        return False


def test_serves_in_a_process_of_its_own(running: Start) -> None:
    """The app runs in a process of its own."""
    service = running()
    assert service.start() == ProcessReady(service="default")
    assert int(service.get()) == service.process.pid != os.getpid()


UNHINDERED = """
def app(environ, start_response):
    if environ["PATH_INFO"] == "/fail":
        raise LookupError("no such thing")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"it ", b"works"]
"""


def test_the_apps_modules_take_no_place_of_the_standard_librarys(running: Start, tmp_path: Path) -> None:
    """A module of the app can have any name of the standard library; the server's own code doesn't import it."""
    for name in sys.stdlib_module_names:
        (tmp_path / f"{name}.py").write_text("raise ImportError('the app has a module with this name')")
    service = running(UNHINDERED)
    assert service.start() == ProcessReady(service="default")
    assert service.ask("/") == (200, "it works")
    assert service.ask("/fail")[0] == 500
    service.process.stop()


def test_nor_do_those_of_the_commands_directory(running: Start, tmp_path: Path) -> None:
    """A module in the directory of the command takes no place either, nor is it found by an app elsewhere."""
    (tmp_path / "queue.py").write_text("raise ImportError('not this one')")
    (tmp_path / "only_here.py").write_text("")
    directory = tmp_path / "svc"
    directory.mkdir()
    (directory / "served.py").write_text(f"import importlib.util\n{FINDS_ONLY_HERE}")
    service = running(directory=directory)
    assert service.start() == ProcessReady(service="default")
    assert service.get() == "None"


FINDS_ONLY_HERE = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [repr(importlib.util.find_spec("only_here")).encode()]
"""


@pytest.mark.parametrize("variables", [{"PYTHONPATH": "/nowhere"}, {"PYTHONSAFEPATH": "1"}, {"PYTHONPATH": ""}])
def test_the_process_has_the_servers_own_package(running: Start, variables: dict[str, str]) -> None:
    """The process runs the code of the server that started it, whatever its own path would find."""
    source = """
import deferred_middleware

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [deferred_middleware.__file__.encode()]
"""
    service = running(source, variables=variables)
    assert service.start() == ProcessReady(service="default")
    assert service.get() == deferred_middleware.__file__


def test_stop_leaves_no_process(running: Start) -> None:
    """After stop(), the process and its children are gone."""
    service = running()
    service.start()
    pid, grandchild = service.process.pid, int(service.get("/child"))
    assert pid is not None
    service.process.stop()
    assert service.process.pid is None
    assert not is_alive(pid)
    await_true(lambda: not is_alive(grandchild))


def test_stop_lets_a_running_request_finish(running: Start, tmp_path: Path) -> None:
    """A request that runs when the process is asked to stop is still answered."""
    service = running()
    service.start()
    connection = service.connection()
    connection.request("GET", "/wait")
    await_true((tmp_path / "release").exists)
    service.process.request_stop()
    (tmp_path / "release").write_text("go")
    assert connection.getresponse().status == 200
    connection.close()


def test_a_killed_process_is_started_again(running: Start) -> None:
    """After its process is killed, the service answers again from a new process."""
    service = running()
    service.start()
    first = service.process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    # The listening socket stays open, so the request waits for the next process.
    await_true(lambda: not is_alive(first))
    assert int(service.get()) != first


def test_its_status_follows_its_process(running: Start) -> None:
    """The status has the process, since when it serves, and how often it was started."""
    service = running()
    service.start()
    before = service.process.status
    assert (before.pid, before.is_serving, before.starts) == (service.process.pid, True, 1)
    assert before.since is not None

    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)
    await_true(lambda: service.process.status.starts == 2 and service.process.status.is_serving)
    after = service.process.status
    assert after.pid != before.pid
    assert after.since is not None
    assert after.since > before.since


def test_it_works_without_waitid(running: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without os.waitid, a killed process is still restarted, and stopping works."""
    monkeypatch.delattr(os, "waitid")
    service = running()
    service.start()
    first = service.process.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await_true(lambda: not is_alive(first))
    second = int(service.get())
    assert second != first
    service.process.stop()
    assert not is_alive(second)


def test_what_a_dead_process_started_is_ended(running: Start) -> None:
    """If a process is killed, its children are ended too."""
    service = running()
    service.start()
    grandchild = int(service.get("/child"))
    assert service.process.pid is not None
    os.kill(service.process.pid, signal.SIGKILL)
    await_true(lambda: not is_alive(grandchild))


def test_the_pause_before_a_restart_doubles() -> None:
    """If a service keeps dying, the pause before each restart doubles up to a limit."""
    assert [pause_seconds(deaths) for deaths in (1, 2, 3, 4, 5, 6, 1000)] == [0.5, 1, 2, 4, 8, 10, 10]


def test_a_death_is_said_with_its_status(running: Start, caplog: pytest.LogCaptureFixture) -> None:
    """The log says how the process ended and when it is started again."""
    service = running("import os\ndef app(environ, start_response):\n    os._exit(3)\n")
    service.start()
    with pytest.raises((http.client.HTTPException, OSError)):
        service.get()
    await_true(lambda: "ended with status 3; it is started again in 0.5 s" in caplog.text)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os\nos._exit(3)", "ended with status 3 while served:app was imported"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9 (SIGKILL) while"),
        ("raise ValueError('no such luck')", "ValueError: no such luck (served.py:1)"),
    ],
)
def test_a_failed_start_is_told_once(running: Start, source: str, expected: str) -> None:
    """If an app can't start, the reason is reported once and the app is not started again."""
    service = running(source)
    told = service.start()
    assert isinstance(told, StartFailed)
    assert expected in told.message
    service.process.stop()
    assert service.events.empty()
    assert service.process.pid is None


def test_a_failed_import_brings_its_traceback(running: Start) -> None:
    """A failed import is reported with the app's traceback."""
    told = running("raise ValueError('no such luck')").start()
    assert isinstance(told, StartFailed)
    assert 'served.py", line 1' in told.traceback


def test_an_app_that_hangs_at_start_is_given_up(running: Start) -> None:
    """An import that doesn't end in time is a failed start."""
    told = running("import threading\nthreading.Event().wait()", start_timeout_seconds=1.0).start()
    assert isinstance(told, StartFailed)
    assert "was not imported within 1 s" in told.message


def test_stopping_while_it_starts_tells_nothing(running: Start) -> None:
    """Stopping a process during the import is not reported as a failure."""
    service = running("import threading\nopen('importing', 'w').close()\nthreading.Event().wait()")
    service.process.start()
    await_true(Path("importing").exists)
    service.process.stop()
    assert service.events.empty()


def test_the_app_does_not_get_the_lifeline(running: Start) -> None:
    """The app's standard input is empty, and reading it doesn't end the process."""
    service = running()
    service.start()
    assert service.get("/stdin") == "''"


VERSIONED = """
import os

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"{version}"]
"""


def change(service: Running, tmp_path: Path, source: str) -> None:
    """Change the code of a service and restart it."""
    (tmp_path / "served.py").write_text(source)
    service.process.restart()


def test_it_is_started_again_with_changed_code(running: Start, tmp_path: Path) -> None:
    """After a restart the app runs its new code, and the old process's end counts as intended."""
    ends = Ends()
    service = running(VERSIONED.format(version="old"), deliveries=ends)
    service.start()
    assert service.get() == "old"
    assert service.process.is_serving
    change(service, tmp_path, VERSIONED.format(version="newer"))
    # The old process may answer until it ends.
    assert service.events.get(timeout=WAIT_SECONDS) == ProcessReady(service="default")
    assert service.get() == "newer"
    end = ends.noted.get(timeout=WAIT_SECONDS)
    assert (end.number, end.intended) == (1, True)


def test_a_process_that_breaks_the_rules_is_killed(running: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Who delivers tasks can have the process killed, with a reason for the log; it is started again."""
    ends = Ends()
    service = running(ECHO_PID, deliveries=ends)
    service.start()
    ends.kill("it answered twice")
    assert service.events.get(timeout=WAIT_SECONDS) == ProcessReady(service="default")
    end = ends.noted.get(timeout=WAIT_SECONDS)
    assert (end.how, end.intended) == ("was ended by the server: it answered twice", False)
    assert "The app process of service 'default' was ended by the server: it answered twice" in caplog.text


def test_broken_code_is_told_and_waits_for_better(
    running: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Code that can't be imported is logged with its traceback, and is tried again only after it changes."""
    service = running(VERSIONED.format(version="old"))
    service.start()
    change(service, tmp_path, "def broken(:\n")
    await_true(lambda: "It is started when its code changes again." in caplog.text)
    assert "SyntaxError: invalid syntax" in caplog.text
    assert 'served.py", line 1' in caplog.text
    assert not service.process.is_serving
    assert service.process.pid is None
    change(service, tmp_path, VERSIONED.format(version="newer"))
    assert service.events.get(timeout=WAIT_SECONDS) == ProcessReady(service="default")
    assert service.get() == "newer"
    assert caplog.text.count("can't be started again") == 1


def test_where_it_fails_is_told_once(running: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If a service died and can't start, it is tried again, and the same traceback is logged only once."""
    service = running(VERSIONED.format(version="old"))
    service.start()
    (tmp_path / "served.py").write_text("1 / 0\n")
    assert service.process.pid is not None
    os.kill(service.process.pid, signal.SIGKILL)
    await_true(lambda: caplog.text.count("can't be started again") == 2)
    assert caplog.text.count("Traceback") == 1


def test_a_process_that_does_not_end_is_killed_for_the_next(
    running: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of the app that never ends doesn't delay the new code, because the old process is killed."""
    monkeypatch.setattr(process, "_KILL_AFTER_SECONDS", 0.5)
    stubborn = "import threading\nthreading.Thread(target=threading.Event().wait).start()\n"
    service = running(stubborn + VERSIONED.format(version="old"))
    service.start()
    change(service, tmp_path, VERSIONED.format(version="newer"))
    assert service.events.get(timeout=WAIT_SECONDS) == ProcessReady(service="default")
    assert service.get() == "newer"


def test_a_change_during_the_import_counts(running: Start, tmp_path: Path) -> None:
    """If the code changes during the import, even the first one, the import is abandoned without a failure."""
    importing = tmp_path / "importing"
    service = running(f"import pathlib, threading\npathlib.Path({str(importing)!r}).touch()\nthreading.Event().wait()")
    service.process.start()
    await_true(importing.exists)
    change(service, tmp_path, VERSIONED.format(version="newer"))
    assert service.events.get(timeout=WAIT_SECONDS) == ProcessReady(service="default")
    assert service.get() == "newer"


def test_a_stop_ends_the_wait_for_a_change(running: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A service that waits for changed code stops at once."""
    service = running(VERSIONED.format(version="old"))
    service.start()
    change(service, tmp_path, "1 / 0")
    await_true(lambda: "It is started when its code changes again." in caplog.text)
    service.process.stop()
    assert service.process.pid is None


def test_what_gunicorn_imports_before_the_app_is_imported_before_it() -> None:
    """An app's module may have any name that it may have under gunicorn."""
    report = "import sys; print(*(name for name in sys.modules if name in sys.stdlib_module_names))"

    def imported(code: str) -> set[str]:
        command = [sys.executable, "-c", f"{code}; {report}"]
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())

    gunicorn = imported("import gunicorn.app.wsgiapp, gunicorn.arbiter, gunicorn.glogging, gunicorn.workers.gthread")
    server = imported(
        "import deferred_middleware.server.apps.app_server as _; from deferred_middleware.server.apps import entry; "
        "entry._import_standard_library()"
    )
    # An app can't be in the way of what is part of the interpreter.
    private = {name for name in gunicorn if name.startswith("_")}
    assert gunicorn - private - set(sys.builtin_module_names) <= server


def test_the_app_is_imported_by_the_only_thread(running: Start) -> None:
    """No other thread runs while the app is imported: gevent's monkey.patch_all() needs that for the import's locks."""
    service = running(
        "import threading\nTHREADS = threading.enumerate()\nassert len(THREADS) == 1, THREADS\n" + ECHO_PID
    )
    assert service.start() == ProcessReady(service="default")

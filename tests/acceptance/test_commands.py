"""The commands that users run against a running server."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.appengine.ext.remote_api import remote_api_bytes_pb2

from tests.support.repository import ROOT
from tests.support.running import TELL, WAIT_SECONDS, Recorder, Serve, Server

# POST /defer/<function> takes the options of defer() as JSON and defers a function of the module "chores".
MAIN = """
import json
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer
import chores

def pages(environ, start_response):
    options = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])) or "{}")
    task = defer(getattr(chores, environ["PATH_INFO"].split("/")[2]), "a\\x1b[31mb", **options)
    answer = task.name.encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]

app = wrap_wsgi_app(DeferredMiddleware(pages))
"""
CHORES = (
    TELL
    + """
from deferred_middleware import PermanentTaskFailure, current_task

def work(argument):
    tell(ran=current_task().name)

def refuse(argument):
    if not os.path.exists("forgive"):
        raise PermanentTaskFailure("refused")
    tell(ran=current_task().name)

def fail_once(argument):
    if current_task().attempt == 1:
        raise RuntimeError("not yet")
    tell(ran=current_task().name)

def chain(argument):
    from deferred_middleware import defer
    defer(work, argument, _countdown=3600)
    tell(ran=current_task().name)
"""
)
LATER = {"_countdown": 3600}


@pytest.fixture
def server(serve: Serve) -> Server:
    """Start the app above."""
    return serve({"main.py": MAIN, "chores.py": CHORES})


def ok(server: Server, *arguments: str) -> str:
    """Run a command that must succeed, and return its output."""
    done = server.command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(server: Server, *arguments: str) -> Any:
    """Run a command that must succeed, and return its JSON output."""
    return json.loads(ok(server, *arguments, "--json"))


def refused(server: Server, status: int, *arguments: str) -> str:
    """Run a command that must fail with this exit status, and return its error sentence."""
    done = server.command(*arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    prefix, _, sentence = line.partition(": ")
    assert prefix == "deferred-middleware"
    return sentence


def test_a_task_from_list_to_end(server: Server, recorder: Recorder) -> None:
    """The commands list queues and tasks, show a task, run it, and show that it ran."""
    name = server.post("/defer/work", LATER)
    server.post("/defer/work", LATER)

    queues = ok(server, "queues").splitlines()
    headings = ["QUEUE", "DUE", "SCHEDULED", "RETRYING", "RUNNING", "SUCCEEDED", "FAILED", "NEXT", "STATE"]
    assert queues[0].split() == headings
    assert re.fullmatch(r"default +0 +2 +0 +0 +0 +0 +in (60|59) min", queues[1])

    tasks = ok(server, "tasks", "--function", "chores/work").splitlines()
    assert re.fullmatch(
        r"ID +QUEUE .* CALL\n +2 .*\n +1 +default +scheduled +0 +\d+ m?s  in (60|59) min  "
        r"chores\.work\('a\\x1b\[31mb'\)",
        "\n".join(tasks),
    )

    shown = ok(server, "show", f"default/{name}")
    assert shown.startswith(f"task 1         default/{name}\nstate          ready\n")
    # Control characters in an argument are escaped, so that they can't affect the terminal.
    assert "\ncall           chores.work('a\\x1b[31mb')\n" in shown
    assert "header         Content-Type: application/octet-stream\n" in shown
    assert shown.endswith("It has not been tried yet.\n")

    assert ok(server, "run", "1") == "Task 1 runs as soon as its service can take it.\n"
    assert recorder.next() == {"ran": name}
    ok(server, "drain")
    shown = ok(server, "show", "1")
    assert "\nstate          succeeded\n" in shown
    assert re.search(r"\nattempt 1, \d{4}-.*, in service default, [0-9,]+ m?s: status 200\n", shown)
    assert recorder.is_silent(0.5)

    assert ok(server, "delete", "2") == "Task 2 is deleted.\n"
    assert refused(server, 4, "show", "2") == "There is no task '2'; it may be deleted."


def test_json_is_for_machines(server: Server, recorder: Recorder) -> None:
    """With ``--json`` each command prints the API's answer as one JSON document."""
    name = server.post("/defer/work", LATER | {"_name": "mine"})
    assert told(server, "queues")["queues"][0]["scheduled"] == 1
    (task,) = told(server, "tasks")["tasks"]
    assert (task["id"], task["name"], task["function"]) == (1, name, "chores/work")
    assert told(server, "show", "1")["task"]["payload"]["args"] == ["'a\\x1b[31mb'"]
    assert told(server, "pause", "default") == {"queue": "default", "changed": True}
    assert told(server, "resume", "default") == {"queue": "default", "changed": True}
    assert told(server, "run", "1") == {"tasks": [{"task": 1, "done": "run"}]}
    recorder.next()
    drained = told(server, "drain")
    assert (drained["drained"], drained["failed_meanwhile"], drained["left_alone"]) == (True, 0, [])
    assert told(server, "retry", "--all") == {"retried": 0}
    assert told(server, "failures") == {"failures": [], "next_before": None}
    assert told(server, "functions")["functions"][0]["name"] == "chores/work"
    assert told(server, "queue-yaml")["error"] is None
    assert told(server, "cron")["entries"] == []
    purged = told(server, "purge", "default", "--yes")
    assert (purged["queue"], purged["deleted"]) == ("default", 0)
    assert isinstance(purged["undo_until_usec"], int)
    assert told(server, "forget", "default", "mine") == {"queue": "default", "forgotten": 1}
    assert told(server, "delete", "1") == {"tasks": [{"task": 1, "done": "delete"}]}


def test_dead_letters_are_retried_one_or_all(server: Server, recorder: Recorder) -> None:
    """The commands list dead letters and retry one or all of them."""
    names = [server.post("/defer/refuse", {}) for _ in range(3)]
    failed = server.command("drain")
    # The tasks may have failed before the command first looked.
    assert failed.returncode in (0, 5)
    assert ok(server, "tasks", "--state", "failed").count("chores.refuse(") == 3
    assert "failed for good" in ok(server, "show", "1")

    (server.directory / "forgive").touch()
    assert ok(server, "retry", "1") == "Task 1 will be tried again.\n"
    assert recorder.next() == {"ran": names[0]}
    assert ok(server, "retry", "--all") == "2 failed tasks will be tried again.\n"
    assert {recorder.next()["ran"], recorder.next()["ran"]} == set(names[1:])
    ok(server, "drain")
    assert ok(server, "tasks", "--state", "failed") == "There are no such tasks.\n"


def test_drain_waits_for_what_is_due(server: Server, recorder: Recorder) -> None:
    """``drain`` ends when every due task has run, retries included, and reports the tasks that are due later."""
    names = {server.post("/defer/fail_once", {}) for _ in range(5)}
    server.post("/defer/work", LATER)
    done = server.command("drain")
    assert done.returncode == 0
    assert done.stdout == (
        "Everything due is done.\n1 task with a later ETA left; --include-scheduled runs those too.\n"
    )
    assert {recorder.next()["ran"] for _ in names} == names
    (queue,) = told(server, "queues")["queues"]
    assert (queue["succeeded"], queue["scheduled"]) == (5, 1)


def test_drain_runs_what_is_scheduled_when_told(server: Server, recorder: Recorder) -> None:
    """With ``--include-scheduled``, ``drain`` runs tasks before their ETA, including tasks that are added meanwhile."""
    names = {server.post("/defer/chain", LATER) for _ in range(3)}
    assert ok(server, "drain", "--include-scheduled") == "Everything due is done.\n"
    assert {recorder.next()["ran"] for _ in range(6)} > names
    assert told(server, "queues")["queues"][0]["succeeded"] == 6


def test_drain_says_what_failed_meanwhile(server: Server) -> None:
    """If tasks fail for good while ``drain`` runs, its exit status says so."""
    for _ in range(3):
        server.post("/defer/refuse", LATER)
    done = server.command("drain", "--include-scheduled")
    assert done.returncode == 5
    assert "3 tasks failed for good meanwhile: deferred-middleware tasks --state failed" in done.stdout


def test_drain_gives_up_when_told(server: Server) -> None:
    """If ``--timeout`` passes, ``drain`` exits with its own status and reports what is left; progress is on stderr."""
    server.post("/defer/work", {"_target": "local.nowhere"})
    done = server.command("drain", "--timeout", "1")
    assert done.returncode == 6
    assert re.match(r"Timed out after 1 s: \d due, \d running", done.stdout)
    assert re.match(r"\d due, \d running", done.stderr)


def test_names_of_former_tasks_can_be_freed(server: Server, recorder: Recorder) -> None:
    """A used name is blocked until a command frees it."""
    server.post("/defer/work", {"_name": "mine"})
    recorder.next()
    ok(server, "drain")
    assert ok(server, "forget", "default", "mine") == "1 name of queue default can be used again.\n"
    server.post("/defer/work", {"_name": "mine"})
    assert recorder.next() == {"ran": "mine"}


def test_purge_deletes_what_waits(server: Server, recorder: Recorder) -> None:
    """``purge`` deletes all waiting tasks and keeps the succeeded ones."""
    server.post("/defer/work", {})
    recorder.next()
    ok(server, "drain")
    for _ in range(3):
        server.post("/defer/work", LATER)
    assert ok(server, "purge", "default", "--yes") == (
        "3 tasks of queue default deleted. "
        "For ten minutes, 'deferred-middleware undo-purge default' brings them back.\n"
    )
    assert [task["state"] for task in told(server, "tasks")["tasks"]] == ["succeeded"]


def test_a_purge_is_undone(server: Server, recorder: Recorder) -> None:
    """``undo-purge`` brings the tasks back as they were, once; afterwards they run."""
    name = server.post("/defer/work", LATER | {"_name": "mine"})
    ok(server, "purge", "default", "--yes")
    assert told(server, "tasks")["tasks"] == []

    assert ok(server, "undo-purge", "default") == "1 task of queue default restored.\n"

    (task,) = told(server, "tasks")["tasks"]
    assert (task["id"], task["name"], task["state"]) == (1, name, "ready")
    sentence = refused(server, 1, "undo-purge", "default")
    assert sentence == "No purge of queue default can be undone; ten minutes are the limit."
    ok(server, "run", "1")
    assert recorder.next() == {"ran": name}


def test_a_task_gets_another_eta(server: Server, recorder: Recorder) -> None:
    """``reschedule`` moves a task's ETA, as a time from now or as a date; when it is reached, the task runs."""
    name = server.post("/defer/work", LATER)
    assert re.fullmatch(
        r"The ETA of task 1 is 2101-12-24 18:00:00.*\.\n", ok(server, "reschedule", "1", "2101-12-24T18:00")
    )
    assert "\nwaits          Its ETA is 2101-12-24 18:00:00, in " in ok(server, "show", "1")

    assert ok(server, "reschedule", f"default/{name}", "0s").startswith("The ETA of task 1 is ")

    assert recorder.next() == {"ran": name}
    ok(server, "drain")
    assert "Task 1 is not waiting to run: it has succeeded." in refused(server, 1, "reschedule", "1", "5min")
    assert "'soon' is not a time" in refused(server, 1, "reschedule", "1", "soon")


def test_a_task_is_moved_to_another_queue(serve: Serve, recorder: Recorder) -> None:
    """``move`` puts a task into another queue, whose limits hold for it from then on."""
    queues = "queue:\n- name: default\n- name: still\n  rate: 0\n- name: pulled\n  mode: pull\n"
    server = serve({"main.py": MAIN, "chores.py": CHORES, "queue.yaml": queues})
    name = server.post("/defer/work", {"_queue": "still"})
    assert "Queue still is paused by its configuration" in ok(server, "show", "1")
    assert "pulled is a pull queue" in refused(server, 1, "move", "1", "pulled")
    assert "There is no queue 'nope'" in refused(server, 4, "move", "1", "nope")

    assert ok(server, "move", "1", "default") == "Task 1 is in queue default.\n"

    assert recorder.next() == {"ran": name}
    assert ok(server, "show", "1").startswith(f"task 1         default/{name}\n")


def test_the_list_shows_what_a_task_waits_for(server: Server) -> None:
    """Scheduled and retrying tasks can be asked for; a task that was dropped with a 200 doesn't look like a success."""
    server.post("/defer/work", LATER)
    server.post("/defer/fail_once", {"_retry_options": {"min_backoff_seconds": 3600}})
    server.post("/defer/refuse", {})
    server.wait_for_output("next try")
    server.wait_for_output("dead letter")
    assert [task["id"] for task in told(server, "tasks", "--state", "scheduled")["tasks"]] == [1]
    assert [task["id"] for task in told(server, "tasks", "--state", "retrying")["tasks"]] == [2]
    assert [task["id"] for task in told(server, "tasks", "--state", "ready")["tasks"]] == [2, 1]
    assert told(server, "tasks", "--state", "retrying", "--function", "work")["tasks"] == []
    dropped, retrying, scheduled = ok(server, "tasks").splitlines()[1:]
    assert re.match(r" +3 +default +failed +1 +dropped +\d+ m?s +\d+ m?s +chores\.refuse\(", dropped)
    assert re.match(r" +2 +default +retrying +1 +500 +\d+ m?s +\d+ m?s +in \d+ min +chores\.fail_once\(", retrying)
    assert re.match(r" +1 +default +scheduled +0 +\d+ m?s +in \d+ min +chores\.work\(", scheduled)


def at_a_terminal(server: Server, *arguments: str, typed: bytes = b"", until: bytes = b"") -> tuple[str, int]:
    """Run a command at a terminal of 100 columns, interrupt it after ``until``; return what it shows and its status."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(server.directory)
        os.environ.update(PYTHONPATH=str(ROOT), COLUMNS="100")
        os.execv(sys.executable, [sys.executable, "-m", "deferred_middleware", *arguments])
    shown = b""
    with contextlib.suppress(OSError):  # the command has ended
        while select.select([terminal], [], [], WAIT_SECONDS)[0] and (data := os.read(terminal, 65536)):
            shown += data
            if typed and b"[y/N]" in shown:
                os.write(terminal, typed)
                typed = b""
            if until and shown.count(until) == 2:
                os.kill(pid, signal.SIGINT)
    os.close(terminal)
    return shown.decode().replace("\r", ""), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_list_fits_a_terminal_and_can_be_watched(server: Server) -> None:
    """At a terminal no row is wider than it is, and ``--watch`` lists the tasks again and again until Ctrl-C."""
    server.post("/defer/work", LATER)
    shown, status = at_a_terminal(server, "tasks", "--watch", "0.1", until=b"chores.work")
    assert status == 130
    assert max(len(row) for row in shown.replace("\x1b[H\x1b[2J", "").splitlines()) <= 100
    assert "--json" in refused(server, 2, "tasks", "--watch", "--json")


def test_a_call_from_a_shell(server: Server, recorder: Recorder) -> None:
    """``call`` enqueues a function of the app with arguments and options, as the app's default service."""
    assert re.fullmatch(r"chores:work is enqueued as \w+ in queue default\.\n", ok(server, "call", "chores:work", "a"))
    recorder.next()
    ok(server, "call", "--countdown", "3600", "--name", "mine", "chores:work", "argument=[1, 'x']")
    task = told(server, "show", "default/mine")["task"]
    assert task["payload"]["text"] == "chores.work(argument=[1, 'x'])"
    for words, sentence in [
        (["chores"], "Give the function as MODULE:FUNCTION"),
        (["nowhere:work"], "No module named 'nowhere'"),
        (["chores:nothing"], "has no attribute 'nothing'"),
        (["chores:__name__"], "can't be called"),
        (["chores:work"], "chores:work was not enqueued: "),
        (["chores:work", "a", "b=2"], "chores:work was not enqueued: "),
        (["--queue", "nope", "chores:work", "a"], "chores:work was not enqueued: "),
    ]:
        assert sentence in refused(server, 1, "call", *words)
    assert "No server is running" in refused(server, 3, "call", "--data-dir=x", "chores:work")
    token = json.loads((server.data_dir / "server.json").read_text())["token"]
    about = ask(server, "GET", "/api/v1/", {"Host": server.admin[7:], "X-Deferred-Admin-Token": token})[1]
    assert b"TICKET" not in about


def test_what_deletes_tasks_asks(server: Server) -> None:
    """``purge`` and ``delete --failed`` ask at a terminal, and need --yes where there is none."""
    server.post("/defer/work", LATER)
    server.post("/defer/refuse", {})
    server.wait_for_output("dead letter")
    for command in (["purge", "default"], ["delete", "--failed", "default"]):
        assert "give --yes" in refused(server, 2, *command)
        for typed in (b"\n", b"n\n", b"\x04"):
            shown, status = at_a_terminal(server, *command, typed=typed)
            assert (status, "Nothing was deleted." in shown) == (2, True)
    assert len(told(server, "tasks")["tasks"]) == 2
    assert "1 task of queue default deleted." in at_a_terminal(server, "purge", "default", typed=b"y\n")[0]
    assert ok(server, "delete", "--failed", "default", "--yes") == "1 failed task deleted.\n"
    assert told(server, "tasks")["tasks"] == []


def test_what_can_not_be_done_is_one_sentence(server: Server) -> None:
    """Each invalid command prints one sentence, exits with its own status and changes nothing."""
    server.post("/defer/work", LATER)
    assert refused(server, 4, "show", "99") == "There is no task '99'; it may be deleted."
    assert refused(server, 4, "pause", "nope") == "There is no queue 'nope'; the queues are: default."
    assert refused(server, 4, "drain", "nope") == "There is no queue 'nope'."
    assert refused(server, 4, "tasks", "--queue", "nope") == "There is no queue 'nope'; the queues are: default."
    assert refused(server, 1, "show", "mine") == "A task is given by its ID, such as 42, or as QUEUE/NAME; got 'mine'."
    assert refused(server, 1, "retry", "1").startswith("Task 1 has not failed for good: it waits to run")
    assert refused(server, 2, "retry") == "Name the tasks to retry, or give --all."
    assert refused(server, 2, "retry", "1", "--all") == "Name the tasks to retry, or give --all."
    assert refused(server, 2, "retry", "1", "--queue", "default") == "--queue can only be used with --all."
    assert refused(server, 2, "delete") == "Name the tasks to delete, or give --failed QUEUE."
    assert told(server, "queues")["queues"][0]["scheduled"] == 1


def test_the_server_is_found_or_missed(make_server: Serve) -> None:
    """If the server isn't running (not yet started, stopped or killed), a command prints one sentence."""
    server = make_server({"main.py": MAIN, "chores.py": CHORES})
    assert refused(server, 3, "queues").startswith("No server is running on .deferred; start it with")
    server.start()
    found = server.data_dir / "server.json"
    assert found.stat().st_mode & 0o7777 == 0o600
    ok(server, "queues")
    assert server.stop() == 0
    assert not found.exists()
    assert refused(server, 3, "queues").startswith("No server is running on .deferred; start it with")
    server.start()
    pid = server.pid
    server.kill()
    assert found.exists()
    sentence = refused(server, 3, "queues")
    assert re.fullmatch(
        rf"\.deferred/server\.json names a server \(process {pid}, since .*\) that doesn't answer any more; "
        r"start it with 'deferred-middleware serve'\.",
        sentence,
    )
    # The next start detects the kill by itself.
    server.start()
    ok(server, "queues")


def test_a_server_can_be_named_by_its_url(server: Server, tmp_path: Path) -> None:
    """``--admin`` reaches a server by URL and token, without its data directory."""
    elsewhere = tmp_path / "elsewhere"
    token = json.loads((server.data_dir / "server.json").read_text())["token"]
    (tmp_path / "token").write_text(token + "\n")
    (tmp_path / "copy.json").write_text((server.data_dir / "server.json").read_text())
    (tmp_path / "wrong").write_text("guess")
    given = ["queues", f"--data-dir={elsewhere}", f"--admin={server.admin}"]
    ok(server, *given, f"--token-file={tmp_path}/token")
    ok(server, *given, f"--token-file={tmp_path}/copy.json")
    assert "doesn't accept the token" in refused(server, 1, *given, f"--token-file={tmp_path}/wrong")
    assert "give a copy of it as --token-file" in refused(server, 1, *given)
    assert "can't be read" in refused(server, 1, *given, f"--token-file={tmp_path}/none")
    assert "is not a server's URL" in refused(server, 1, "queues", "--admin=ftp://x:1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert refused(server, 3, "queues", f"--admin=127.0.0.1:{port}").startswith(
        f"No server answers at 127.0.0.1:{port}"
    )
    # Another program's page, at the address where the server was.
    assert refused(server, 3, "queues", f"--admin={server.services['default']}").endswith("uses that address now.")


def test_output_that_nobody_reads_to_the_end(server: Server) -> None:
    """If the reader closes the pipe early, as ``head`` does, the command prints no error."""
    for _ in range(3):
        server.post("/defer/work", LATER)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "deferred_middleware", "tasks"],
        cwd=server.directory,
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=WAIT_SECONDS,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def ask(server: Server, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> tuple[int, bytes]:
    """Send a request to the queue process with exactly these headers; return the status and body."""
    host, _, port = server.admin.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
    try:
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_the_queue_process_knows_its_visitors(server: Server) -> None:
    """Over real sockets, requests from other sites, for other hosts or without a token are refused on every path."""
    token = json.loads((server.data_dir / "server.json").read_text())["token"]
    host = server.admin.removeprefix("http://")
    port = host.partition(":")[2]
    own = {"Host": host, "X-Deferred-Admin-Token": token}
    server.post("/defer/work", LATER)
    purge = "/api/v1/queues/default/purge"
    for path, method in [("/api/v1/queues", "GET"), (purge, "POST"), ("/rpc_http", "POST"), ("/", "GET")]:
        for wrong in [
            {"Host": f"evil.example:{port}"},
            {"Host": f"127.0.0.1.evil.example:{port}"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": server.services["default"]},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ]:
            status, body = ask(server, method, path, own | wrong)
            assert (status, body[:9]) == (403, b"Refused: "), (path, wrong)
    for wrong_token in ("", "guess", token[:-1], token + "x"):
        assert ask(server, "GET", "/api/v1/queues", own | {"X-Deferred-Admin-Token": wrong_token})[0] == 401
        assert ask(server, "POST", purge, own | {"X-Deferred-Admin-Token": wrong_token})[0] == 401
    assert ask(server, "GET", purge, own)[0] == 405
    assert told(server, "queues")["queues"][0]["scheduled"] == 1
    page = {"Origin": server.admin, "Sec-Fetch-Site": "same-origin"}
    assert ask(server, "GET", "/api/v1/queues", own | {"Host": f"localhost:{port}"})[0] == 200
    assert ask(server, "POST", purge, own | page)[0] == 200
    assert told(server, "queues")["queues"][0]["scheduled"] == 0
    assert "Refused POST '/rpc_http' from 127.0.0.1: the Host header names 'evil.example'" in server.output
    assert token not in server.output


def test_an_api_call_needs_its_ticket(server: Server) -> None:
    """Without this run's ticket, ``/rpc_http`` answers with an error, even if the request has the users' token."""
    token = json.loads((server.data_dir / "server.json").read_text())["token"]
    headers = {"Host": server.admin.removeprefix("http://"), "X-Deferred-Admin-Token": token}
    for ticket in ("", "guess", token):
        call = remote_api_bytes_pb2.Request(
            service_name="taskqueue", method="PurgeQueue", request=b"", request_id=ticket
        )
        status, body = ask(server, "POST", "/rpc_http", headers, call.SerializeToString())
        answer = remote_api_bytes_pb2.Response.FromString(body)
        assert status == 200
        assert answer.rpc_error.code == remote_api_bytes_pb2.RpcError.SECURITY_VIOLATION


def test_other_names_and_addresses_are_told_and_allowed(serve: Serve) -> None:
    """If other machines can reach the server, it prints a warning, and it answers requests for an allowed host name."""
    server = serve(
        {"main.py": MAIN, "chores.py": CHORES},
        arguments=["--host=0.0.0.0", "--admin-host=0.0.0.0", "--allow-host=queue.test"],
    )
    for option in ("--host", "--admin-host"):
        assert (
            f"{option} 0.0.0.0: whoever reaches any address of this machine over the network reaches" in server.output
        )
    token = json.loads((server.data_dir / "server.json").read_text())["token"]
    for host, status in [("queue.test", 200), ("0.0.0.0", 403), ("evil.example", 403)]:
        assert ask(server, "GET", "/api/v1/queues", {"Host": host, "X-Deferred-Admin-Token": token})[0] == status

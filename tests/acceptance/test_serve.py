"""``deferred-middleware serve``: the real command, real processes, and apps on the unmodified SDK."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import TELL, Recorder, Serve, await_end, signal_thread

APP = (
    TELL
    + """
import signal, subprocess, threading, time
from google.appengine.api import app_identity, memcache, modules, taskqueue, wrap_wsgi_app
from google.appengine.ext import ndb

class Note(ndb.Model):
    text = ndb.StringProperty()

def add(environ):
    task = taskqueue.add(**json.loads(environ["wsgi.input"].read()))
    return task.name

def record(environ):
    headers = {k[5:].replace("_", "-").lower(): v for k, v in environ.items() if k.startswith("HTTP_")}
    tell(path=environ["PATH_INFO"], service=os.environ["GAE_SERVICE"], headers=headers, pid=os.getpid(),
         remote_addr=environ["REMOTE_ADDR"], body=environ["wsgi.input"].read().decode())

def headers(environ):
    return json.dumps({k: v for k, v in environ.items() if isinstance(v, str)})

def fail_twice(environ):
    record(environ)
    if int(environ["HTTP_X_APPENGINE_TASKRETRYCOUNT"]) < 2:
        raise RuntimeError("not yet")

def die_once(environ):
    record(environ)
    if environ["HTTP_X_APPENGINE_TASKRETRYCOUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)

def hang(environ):
    record(environ)
    if not os.path.exists("go-on"):
        threading.Event().wait()

def hold_the_lock(environ):
    subprocess.Popen(["sleep", "1000"])
    tell(path="holds")
    sum(range(10**12))

def finish_slowly(environ):
    tell(path="began")
    threading.Event().wait(1.0)
    tell(path="finished")

def transaction(environ):
    wanted = json.loads(environ["wsgi.input"].read())
    def work():
        Note(id=wanted["id"], text="in transaction").put()
        taskqueue.add(url="/tasks/record", params={"id": wanted["id"]}, transactional=True)
        if wanted["fail"]:
            raise ValueError
    try:
        ndb.transaction(work)
    except ValueError:
        pass
    return str(Note.get_by_id(wanted["id"]) is not None)

def put(environ):
    return Note(text="kept").put().urlsafe().decode()

def notes(environ):
    return json.dumps([note.text for note in Note.query().fetch()])

def services(environ):
    memcache.set("color", "blue")
    return json.dumps({
        "memcache": memcache.get("color"),
        "modules": sorted(modules.get_modules()),
        "hostname": modules.get_hostname("background"),
        "current": modules.get_current_module_name(),
        "version": modules.get_current_version_name(),
        "application": app_identity.get_application_id(),
    })

def own_hostname(environ):
    return modules.get_hostname()

ROUTES = {
    "/own-hostname": own_hostname,
    "/add": add, "/headers": headers, "/transaction": transaction, "/put": put, "/notes": notes,
    "/services": services, "/tasks/record": record, "/tasks/fail-twice": fail_twice, "/tasks/die-once": die_once,
    "/tasks/hang": hang, "/tasks/slow": finish_slowly,
    "/tasks/hold-the-lock": hold_the_lock,
}

def handle(environ, start_response):
    body = ROUTES[environ["PATH_INFO"]](environ) or ""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body.encode()]

app = wrap_wsgi_app(handle)
"""
)

TWO = ("default", "background")


@pytest.mark.parametrize("target", ["local.background", "background", "0.local.background"])
def test_a_task_runs_in_its_target(serve: Serve, recorder: Recorder, target: str) -> None:
    """A task with a target runs in the target service's own process, with the headers of a push task."""
    server = serve(APP, services=TWO)
    name = server.post("/add", {"url": "/tasks/record", "target": target, "payload": "what to do"})
    told = recorder.next()
    assert (told["service"], told["path"], told["body"]) == ("background", "/tasks/record", "what to do")
    assert told["pid"] in server.app_processes()
    assert told["remote_addr"] == "0.1.0.2"
    headers = told["headers"]
    assert headers["x-appengine-queuename"] == "default"
    assert headers["x-appengine-taskname"] == name
    assert headers["x-appengine-taskretrycount"] == headers["x-appengine-taskexecutioncount"] == "0"
    assert abs(float(headers["x-appengine-tasketa"]) - time.time()) < 60
    assert headers["user-agent"].startswith("AppEngine-Google")
    port = server.services["default"].rpartition(":")[2]
    assert headers["x-appengine-default-version-hostname"] == f"localhost:{port}"
    assert headers["host"].endswith(f".localhost:{port}")
    assert "x-deferred-server-token" not in headers
    assert "x-appengine-taskpreviousresponse" not in headers
    assert server.stop() == 0


def test_a_task_without_target_stays_in_its_service(serve: Serve, recorder: Recorder) -> None:
    """A task that the background service adds without a target runs there, because the SDK uses the current host."""
    server = serve(APP, services=TWO)
    server.post("/add", {"url": "/tasks/record"}, service="background")
    assert recorder.next()["service"] == "background"


def test_contextvar_mode_works_too(serve: Serve, recorder: Recorder) -> None:
    """``wrap_wsgi_app(use_legacy_context_mode=False)``, which doesn't use ``os.environ``, routes tasks the same way."""
    source = APP.replace("wrap_wsgi_app(handle)", "wrap_wsgi_app(handle, use_legacy_context_mode=False)")
    server = serve(source, services=TWO, environ={"READ_GAE_CONTEXT_FROM_OS_ENVIRON": "false"})
    server.post("/add", {"url": "/tasks/record", "target": "local.background"})
    assert recorder.next()["service"] == "background"


def test_outsiders_can_not_pose_as_the_queue(serve: Serve) -> None:
    """The server removes all X-AppEngine headers from outside requests before the app sees them."""
    forged = {
        "X-AppEngine-QueueName": "default",
        "X_AppEngine_TaskName": "forged",
        "X-AppEngine-User-IP": "0.1.0.2",
        "X-AppEngine-User-Is-Admin": "1",
        "X-Deferred-Server-Token": "guess",
    }
    seen = json.loads(serve(APP).get("/headers", headers=forged))
    assert "HTTP_X_APPENGINE_QUEUENAME" not in seen
    assert "HTTP_X_APPENGINE_TASKNAME" not in seen
    assert "HTTP_X_DEFERRED_SERVER_TOKEN" not in seen
    assert seen["HTTP_X_APPENGINE_USER_IP"] == seen["REMOTE_ADDR"] == "127.0.0.1"
    assert seen["HTTP_X_APPENGINE_USER_IS_ADMIN"] == "0"  # set by wrap_wsgi_app itself


def test_it_says_what_it_serves_where(serve: Serve) -> None:
    """The server prints the address of each service and of the admin server, and writes the same to the ready file."""
    server = serve(APP, services=TWO)
    for name, url in [*server.services.items(), ("(admin)", server.admin)]:
        assert re.search(rf"^{re.escape(name)} +{re.escape(url)} ", server.output, re.MULTILINE)
    assert list(server.services) == list(TWO)
    assert "Tasks are kept in .deferred; Ctrl-C stops it." in server.output


def test_several_apps_make_several_services(serve: Serve) -> None:
    """Each service runs the app that the command line pairs with it."""
    simple = (
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [__name__.encode()]\n"
    )
    server = serve(
        {"web.py": simple, "work.py": simple}, apps=["web:app", "work:app"], services=["background", "default"]
    )
    assert server.get("/", service="background") == "web"
    assert server.get("/", service="default") == "work"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_whole(serve: Serve, signum: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the server with status 0, without a traceback, and leave no process."""
    server = serve(APP, services=TWO)
    assert len(server.app_processes()) == 2
    assert server.stop(signum) == 0
    assert "Traceback" not in server.output
    assert not server.ready_file.exists()


def test_a_signal_to_any_thread_stops_it(serve: Serve) -> None:
    """The kernel gives a signal to any thread of a process. In the queue process, the main thread waits elsewhere."""
    server = serve(APP)
    threads = [int(entry.name) for entry in Path(f"/proc/{server.pid}/task").iterdir()]
    signal_thread(server.pid, max(thread for thread in threads if thread != server.pid), signal.SIGTERM)
    assert server.wait() == 0
    assert "Stopping" in server.output


def test_an_app_process_ends_by_a_signal_to_any_thread(serve: Serve) -> None:
    """Its main thread looks for requests every 30 seconds, but a signal ends it at once."""
    server = serve(APP)
    (app_process,) = server.app_processes()
    threads = [int(entry.name) for entry in Path(f"/proc/{app_process}/task").iterdir()]
    signal_thread(app_process, max(thread for thread in threads if thread != app_process), signal.SIGTERM)
    await_end(app_process, timeout_seconds=15)
    server.wait_for_output("is running again")


def test_a_signal_stops_it_while_it_starts(make_server: Serve, recorder: Recorder) -> None:
    """Ctrl-C before the app is imported ends the server with status 0."""
    server = make_server(TELL + "tell(path='importing')\nimport threading\nthreading.Event().wait()\n")
    server.launch()
    recorder.next()
    assert server.stop(signal.SIGINT) == 0
    assert "Traceback" not in server.output


def test_it_goes_on_when_nobody_reads_its_output(make_server: Serve) -> None:
    """The server works and stops normally if its terminal or output pipe is closed."""
    server = make_server(APP)
    reading, writing = os.pipe()
    os.close(reading)
    server.launch(stdout=writing)
    os.close(writing)
    server.wait_until_ready()
    assert server.get("/notes") == "[]"
    assert server.stop() == 0
    assert server.output == ""


def test_a_running_task_may_finish(serve: Serve, recorder: Recorder) -> None:
    """If the server is stopped while a task runs, the task finishes and is not run again."""
    server = serve(APP)
    server.post("/add", {"url": "/tasks/slow"})
    assert recorder.next()["path"] == "began"
    assert server.stop() == 0
    assert recorder.next()["path"] == "finished"
    server.start()
    assert recorder.is_silent(1.0)


def test_a_second_signal_ends_it_at_once(serve: Serve, recorder: Recorder) -> None:
    """If a task never ends, a second Ctrl-C ends the server at once; the task runs again after the next start."""
    server = serve(APP)
    server.post("/add", {"url": "/tasks/hang"})
    recorder.next()
    server.send_signal(signal.SIGINT)
    while "Stopping" not in server.output:
        os.sched_yield()
    began = time.monotonic()
    assert server.stop(signal.SIGINT) == 0
    assert time.monotonic() - began < 4.0
    (server.directory / "go-on").touch()
    server.start()
    assert recorder.next()["path"] == "/tasks/hang"


def test_a_task_that_outlasts_the_stop_runs_again(serve: Serve, recorder: Recorder) -> None:
    """If the stop cuts a task off, the server says so, keeps the task, and runs it after the next start."""
    server = serve(APP)
    server.post("/add", {"url": "/tasks/hang"})
    recorder.next()
    assert server.stop() == 0
    assert "1 task did not finish in time" in server.output
    (server.directory / "go-on").touch()
    server.start()
    assert recorder.next()["path"] == "/tasks/hang"


def test_killing_it_leaves_no_app_process(serve: Serve) -> None:
    """If the queue process is killed, the app processes end and their ports are free again."""
    server = serve(APP, services=TWO)
    assert len(server.app_processes()) == 2
    server.kill()


def test_acknowledged_tasks_survive_a_kill(serve: Serve, recorder: Recorder) -> None:
    """Every task that was added before ``kill -9`` runs after the next start."""
    server = serve(APP)
    for number in range(20):
        server.post("/add", {"url": "/tasks/record", "payload": str(number), "countdown": 3})
    server.kill()
    server.start()
    assert {recorder.next()["body"] for _ in range(20)} == {str(number) for number in range(20)}


def test_a_killed_app_process_is_replaced_and_its_task_retried(serve: Serve, recorder: Recorder) -> None:
    """If a task kills its process, it is retried in a new process."""
    server = serve(APP)
    # Delayed, so that this request is answered before the process dies.
    server.post("/add", {"url": "/tasks/die-once", "countdown": 0.5})
    first, second = recorder.next(), recorder.next()
    assert first["pid"] != second["pid"]
    assert second["headers"]["x-appengine-taskretrycount"] == "1"
    assert second["headers"]["x-appengine-taskexecutioncount"] == "0"
    assert "was killed by signal 9 (SIGKILL); it is started again" in server.output
    assert server.stop() == 0


def test_an_app_process_ends_with_the_queue_process_at_once(serve: Serve, recorder: Recorder) -> None:
    """When the queue process is killed, its app ends too, with what it started, even while it runs code in C."""
    server = serve(APP)
    # With a countdown, because the task would otherwise keep the answer of this request back.
    server.post("/add", {"url": "/tasks/hold-the-lock", "countdown": 0.5})
    recorder.next()
    time.sleep(0.1)  # until sum() holds the interpreter's lock
    os.kill(server.pid, signal.SIGKILL)
    killed = time.monotonic()
    server.wait()
    while server.processes():
        assert time.monotonic() - killed < 2.0
        time.sleep(0.01)


def test_idle_connections_keep_nobody_out(serve: Serve, recorder: Recorder) -> None:
    """With 5,000 idle connections, new requests, API calls and commands are answered, and tasks run."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = serve(APP)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for url in (server.services["default"], server.admin):
            host, _, port = url.removeprefix("http://").partition(":")
            for _ in range(2500):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=30))
        assert server.get("/notes") == "[]"
        for number in range(20):
            server.post("/add", {"url": "/tasks/record", "payload": str(number)})
        assert {recorder.next()["body"] for _ in range(20)} == {str(number) for number in range(20)}
        assert json.loads(server.command("queues", "--json").stdout)["queues"]


def move(data: Path) -> None:
    """Move the data directory."""
    data.rename(data.with_name("moved"))


def replace(data: Path) -> None:
    """Put a copy in the place of the data directory."""
    move(data)
    shutil.copytree(data.with_name("moved"), data)


def delete_log(data: Path) -> None:
    """Delete the log of SQLite."""
    data.joinpath("tasks.sqlite-wal").unlink()


@pytest.mark.parametrize("change", [move, shutil.rmtree, replace, delete_log])
def test_a_store_that_is_gone_takes_no_task(serve: Serve, change: Callable[[Path], None]) -> None:
    """When the store's file is no longer the one at its path, an add is refused, and the server stops and says why."""
    server = serve(APP)
    server.post("/add", {"url": "/tasks/slow", "countdown": 3600})
    change(server.data_dir)
    with pytest.raises(AssertionError, match="TransientError: the task store failed"):
        server.post("/add", {"url": "/tasks/slow", "countdown": 3600})
    assert server.wait() == 1
    assert server.processes() == []
    last = server.output.splitlines()[-1]
    assert re.match(r"deferred-middleware: The task store stopped writing \(\S+tasks\.sqlite(-wal)? is ", last)
    assert re.search(
        r"(it was deleted or moved while the server used it|it was replaced)\); restart the server\.$", last
    )
    assert "Traceback" not in "".join(line for line in server.output.splitlines() if line.startswith("[queue]"))


def test_requests_wait_while_the_app_restarts(serve: Serve) -> None:
    """A request that arrives during a restart is answered after it."""
    server = serve(APP)
    (pid,) = server.app_processes()
    os.kill(pid, signal.SIGKILL)
    await_end(pid)
    assert server.get("/notes") == "[]"


def test_a_failed_task_is_retried_until_it_succeeds(serve: Serve, recorder: Recorder) -> None:
    """A task that fails twice and then succeeds has three attempts, which its headers count."""
    server = serve(APP)
    server.post("/add", {"url": "/tasks/fail-twice"})
    headers = [recorder.next()["headers"] for _ in range(3)]
    assert [header["x-appengine-taskretrycount"] for header in headers] == ["0", "1", "2"]
    assert [header["x-appengine-taskexecutioncount"] for header in headers] == ["0", "1", "2"]
    assert [header.get("x-appengine-taskpreviousresponse") for header in headers] == [None, "500", "500"]
    assert recorder.is_silent(1.0)


def test_a_committed_transaction_enqueues(serve: Serve, recorder: Recorder) -> None:
    """A transactional task runs after its transaction commits."""
    server = serve(APP)
    assert server.post("/transaction", {"id": "a", "fail": False}) == "True"
    assert recorder.next()["body"] == "id=a"


def test_a_rolled_back_transaction_does_not(serve: Serve, recorder: Recorder) -> None:
    """If the transaction fails, its transactional task never runs."""
    server = serve(APP)
    assert server.post("/transaction", {"id": "a", "fail": True}) == "False"
    assert recorder.is_silent(1.0)


def test_the_sdks_other_services_answer(serve: Serve) -> None:
    """Memcache, modules and app identity work through the unmodified SDK, in each service."""
    server = serve(APP, services=TWO)
    answers = json.loads(server.get("/services", service="background"))
    background = server.services["background"].removeprefix("http://")
    assert answers == {
        "memcache": "blue",
        "modules": ["background", "default"],
        "hostname": background,
        "current": "background",
        "version": "local",
        "application": "local-app",
    }


def test_a_service_asks_about_itself(serve: Serve) -> None:
    """If no module is named, the modules API answers for the calling service."""
    server = serve(APP, services=TWO)
    assert server.get("/own-hostname", service="background") == server.services["background"].removeprefix("http://")


def test_the_datastore_is_shared_and_survives(serve: Serve) -> None:
    """All services share one datastore, which survives a kill."""
    server = serve(APP, services=TWO)
    server.get("/put")
    assert server.get("/notes", service="background") == '["kept"]'
    server.kill()
    server.start()
    assert server.get("/notes") == '["kept"]'


def test_cloud_tasks_mode_is_not_passed_on(serve: Serve, recorder: Recorder) -> None:
    """The server removes the variable that would send tasks to Google from the apps' environment, and says so."""
    server = serve(APP, environ={"APPENGINE_USE_CLOUDTASK_PUSH_QUEUE": "true"})
    server.post("/add", {"url": "/tasks/record"})
    recorder.next()
    assert "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE is not passed on" in server.output


def test_the_apps_log_is_shown(serve: Serve) -> None:
    """If an app configures no logging, the server shows its log records with the service's name."""
    source = (
        "import logging\n"
        "def app(environ, start_response):\n"
        "    logging.getLogger('mine').info('hello from the app')\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return []\n"
    )
    server = serve(source)
    server.get("/")
    assert "[default] INFO mine: hello from the app" in server.output


@pytest.mark.parametrize(
    ("source", "app", "expected"),
    [
        ("", "nowhere:app", "No module named 'nowhere' in the current directory"),
        ("import no_such_thing", "main:app", "No module named 'no_such_thing' (main.py:1)"),
        ("\n1 / 0", "main:app", "ZeroDivisionError: division by zero (main.py:2)"),
        ("def broken(:", "main:app", "SyntaxError"),
        ("def app(environ, start_response): pass", "main:ap", "main has no 'ap'; did you mean 'app'?"),
        ("app = 3", "main:app", "main:app is an int, which can't be called"),
        ("async def app(scope, receive, send): pass", "main:app", "async (ASGI)"),
        ("def app(): pass", "main:app", "looks like a factory"),
        ("import sys; sys.exit('no')", "main:app", "called sys.exit('no')"),
        ("import os; os._exit(3)", "main:app", "ended with status 3 while main:app was imported"),
        ("import os; os.kill(os.getpid(), 9)", "main:app", "killed by signal 9 (SIGKILL) while main:app was imported"),
        ("", "main", "MODULE:CALLABLE"),
    ],
    ids=[
        "no module",
        "no such import",
        "an error",
        "a syntax error",
        "no such name",
        "not callable",
        "ASGI",
        "a factory",
        "exits",
        "ends",
        "is killed",
        "no callable",
    ],
)
def test_an_app_that_can_not_be_served(make_server: Serve, source: str, app: str, expected: str) -> None:
    """If an app can't start, the server exits with status 1 and one sentence, without a traceback or a process left."""
    server = make_server(source, apps=[app], services=TWO)
    server.launch()
    assert server.wait() == 1
    assert expected in server.output
    lines = server.output.splitlines()
    assert len(lines) == 1, server.output
    assert lines[0].startswith("deferred-middleware: ")
    assert server.processes() == []
    assert not server.ready_file.exists()


def test_the_traceback_of_the_app_is_shown_when_asked_for(make_server: Serve) -> None:
    """With ``--traceback`` the server prints the app's traceback before the sentence."""
    server = make_server("\n1 / 0", arguments=["--traceback"])
    server.launch()
    assert server.wait() == 1
    assert 'main.py", line 2' in server.output
    assert server.output.splitlines()[-1].startswith("deferred-middleware: Importing main failed")


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
def test_a_port_in_use(make_server: Serve, option: str) -> None:
    """If a port is in use, the error names it and the option that chooses another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = make_server(APP, arguments=[f"{option}={port}"])
        server.launch()
        assert server.wait() == 1
    assert f"Port {port}" in server.output
    assert f"choose another with {option}" in server.output
    assert server.output.count("\n") == 1
    assert server.processes() == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data-dir=main.py"], "--data-dir main.py is not a directory"),
        (["--data-dir=main.py/data"], "--data-dir main.py/data can't be made: Not a directory"),
        (["--ready-file=nowhere/ready.json"], "there is no directory nowhere"),
        (["--host=no.such.host.invalid"], "--host no.such.host.invalid has no IPv4 address"),
        (["--host=192.0.2.1"], "--host 192.0.2.1 is not an address of this machine"),
        (["--port=65535"], "would get port 65536"),
        (["--port=8123", "--admin-port=8124"], "--admin-port 8124 is the port of service 'background'"),
    ],
)
def test_options_that_can_not_be_followed(make_server: Serve, arguments: list[str], expected: str) -> None:
    """If a directory, host or port is invalid, one sentence names the option's value."""
    server = make_server(APP, services=TWO, arguments=arguments)
    server.launch()
    assert server.wait() == 1
    assert expected in server.output
    assert server.output.count("\n") == 1, server.output
    assert server.processes() == []


def test_a_second_server_on_the_same_data(serve: Serve, make_server: Serve, recorder: Recorder) -> None:
    """A second server on the same data directory fails within a second, names the first, and doesn't disturb it."""
    first = serve(APP)
    second = make_server(APP, arguments=[f"--data-dir={first.data_dir}"])
    took_seconds: list[float] = []
    # Several tries, because the machine may be busy.
    while not took_seconds or (min(took_seconds) >= 1.0 and len(took_seconds) < 10):
        began = time.monotonic()
        second.launch()
        assert second.wait() == 1
        took_seconds.append(time.monotonic() - began)
    assert min(took_seconds) < 1.0
    assert re.fullmatch(
        rf"deferred-middleware: Another server \(process {first.pid}, since [-0-9]+ [:0-9]+[-+][:0-9]+\) is using "
        rf"{re.escape(str(first.data_dir))}: stop it, or choose another --data-dir\.\n",
        second.output,
    )
    first.post("/add", {"url": "/tasks/record"})
    recorder.next()
    assert first.stop() == 0


def test_tasks_survive_a_start_that_fails(make_server: Serve, recorder: Recorder) -> None:
    """If the app fails to start, the waiting tasks are kept."""
    server = make_server(APP).start()
    server.post("/add", {"url": "/tasks/record", "countdown": 2})
    assert server.stop() == 0
    main = server.directory / "main.py"
    main.write_text("1 / 0")
    server.launch()
    assert server.wait() == 1
    main.write_text(APP)
    server.start()
    assert recorder.next()["path"] == "/tasks/record"


def test_versions_run_side_by_side(serve: Serve, recorder: Recorder) -> None:
    """A task runs on the version in its target and stays there; a task for an unknown version fails alone."""
    source = (
        TELL
        + """
from google.appengine.api import taskqueue, wrap_wsgi_app

def handle(environ, start_response):
    if environ["PATH_INFO"] == "/add":
        for target in json.loads(environ["wsgi.input"].read()):
            taskqueue.add(url="/work", target=target)
    else:
        tell(version=os.environ["GAE_VERSION"], service=os.environ["GAE_SERVICE"], host=environ["HTTP_HOST"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b""]

app = wrap_wsgi_app(handle)
"""
    )
    server = serve(source, services=["default", "v2.default", "worker", "v2.worker"])
    assert list(server.services) == ["default", "v2.default", "worker", "v2.worker"]

    server.post(
        "/add", ["v3.default", "v2.default", "local.worker", "v2.worker", "local.default"], service="v2.default"
    )

    told = [recorder.next() for _ in range(4)]
    assert {(one["version"], one["service"]) for one in told} == {
        ("v2", "default"),
        ("local", "worker"),
        ("v2", "worker"),
        ("local", "default"),
    }
    for one in told:
        assert one["host"].startswith(f"{one['version']}.{one['service']}.")
    (failing,) = (
        task for task in json.loads(server.command("tasks", "--json").stdout)["tasks"] if task["state"] != "succeeded"
    )
    shown = server.command("show", f"default/{failing['name']}").stdout
    assert "No service answers to 'v3.default'; served here: local.default, v2.default" in shown
    assert server.stop() == 0

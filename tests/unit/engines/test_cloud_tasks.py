"""Tests of the Cloud Tasks engine: its location, messages, unsupported options and the emulator."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import textwrap
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api import taskqueue
from google.appengine.api.taskqueue import TaskRetryOptions, cloudtask
from google.longrunning import operations_pb2

from deferred_middleware import DeferredWarning, Settings, SettingsError, defer, defer_async
from deferred_middleware.calls.options import Options
from deferred_middleware.config import metadata, process
from deferred_middleware.config.process import Deployment, install_settings
from deferred_middleware.config.settings import CLOUD_TASKS_VARIABLE
from deferred_middleware.engines import cloud_tasks, current, location
from deferred_middleware.engines.app_engine import AppEngineEngine
from deferred_middleware.engines.cloud_tasks import CloudTasksEngine
from deferred_middleware.engines.current import engine_and_context
from deferred_middleware.engines.engine import AddFailure, TaskMessage, TaskTemplate
from deferred_middleware.engines.targets import AppEngineTargets
from deferred_middleware.errors import LocationError
from tests.support import sample
from tests.support.repository import ROOT

_VARIABLES = ("GAE_APPLICATION", "GOOGLE_CLOUD_PROJECT", "LOCAL_GCP_REGION", *location.REGION_VARIABLES)


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without variables for the location, and without a metadata server."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(metadata.HOST_VARIABLE, "127.0.0.1:9")
    metadata.forget()
    monkeypatch.setattr(current, "_cloud_tasks", None)
    return monkeypatch


def set_all(environ: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Set environment variables."""
    for name, value in variables.items():
        environ.setenv(name, value)


@pytest.mark.parametrize("value", [None, "", "false", "1", "yes"])
def test_it_is_off_unless_switched_on(environ: pytest.MonkeyPatch, value: str | None) -> None:
    """Cloud Tasks is used if the SDK would use it, and not otherwise."""
    if value is None:
        environ.delenv(CLOUD_TASKS_VARIABLE, raising=False)
    else:
        environ.setenv(CLOUD_TASKS_VARIABLE, value)

    assert not Settings().uses_cloud_tasks
    assert not cloudtask.is_cloudtask_push_queue_enabled()
    assert isinstance(engine_and_context(Settings())[0], AppEngineEngine)
    environ.setenv(CLOUD_TASKS_VARIABLE, "True")
    assert Settings().uses_cloud_tasks
    assert cloudtask.is_cloudtask_push_queue_enabled()


@pytest.mark.parametrize(
    "variables",
    [
        {"GOOGLE_CLOUD_PROJECT": "shop", "LOCATION_ID": "europe-west1"},
        {"GOOGLE_CLOUD_PROJECT": "shop", "LOCATION_ID": "europe-west"},
        {"GOOGLE_CLOUD_PROJECT": "e~shop", "GAE_APPLICATION": "e~shop", "GAE_REGION": "us-central"},
        {"GOOGLE_CLOUD_PROJECT": "example.com:shop", "GAE_LOCATION": "northamerica-northeast1"},
        {"GOOGLE_CLOUD_PROJECT": "shop", "LOCATION_ID": "us-central", "GAE_REGION": "us-central1"},
        {"GOOGLE_CLOUD_PROJECT": "shop", "LOCAL_GCP_REGION": "europe-west1"},
    ],
)
def test_a_known_location_is_fine(environ: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """A known project and region raise no error."""
    set_all(environ, variables)

    location.find()


@pytest.mark.parametrize(
    ("variables", "names", "why"),
    [
        ({"LOCATION_ID": "europe-west1"}, "GOOGLE_CLOUD_PROJECT", "not set"),
        ({"LOCATION_ID": "europe-west1", "GOOGLE_CLOUD_PROJECT": ""}, "GOOGLE_CLOUD_PROJECT", "not set"),
        ({"LOCATION_ID": "europe-west1", "GOOGLE_CLOUD_PROJECT": "My Shop"}, "GOOGLE_CLOUD_PROJECT", "'My Shop'"),
        (
            {"LOCATION_ID": "europe-west1", "GOOGLE_CLOUD_PROJECT": "shop", "GAE_APPLICATION": "s~other"},
            "GOOGLE_CLOUD_PROJECT",
            "'other'",
        ),
        ({"GOOGLE_CLOUD_PROJECT": "shop"}, "LOCATION_ID", "not known"),
        ({"GOOGLE_CLOUD_PROJECT": "shop", "LOCATION_ID": "Europe"}, "LOCATION_ID", "'Europe'"),
        (
            {"GOOGLE_CLOUD_PROJECT": "shop", "LOCATION_ID": "europe-west1", "GAE_REGION": "us-east1"},
            "Set LOCATION_ID",
            "GAE_REGION says us-east1",
        ),
        ({"GOOGLE_CLOUD_PROJECT": "shop", "LOCAL_GCP_REGION": "here"}, "LOCAL_GCP_REGION", "'here'"),
    ],
)
def test_a_doubtful_location_is_an_error(
    environ: pytest.MonkeyPatch, variables: dict[str, str], names: str, why: str
) -> None:
    """A missing or contradictory location raises an error that names the variable and the problem, before an RPC."""
    set_all(environ, variables)

    with pytest.raises(LocationError, match=names) as caught:
        location.find()
    assert why in str(caught.value)


class _Metadata(http.server.BaseHTTPRequestHandler):
    """A metadata server."""

    asked = 0

    def do_GET(self) -> None:
        """Return the region if the request has Google's header."""
        type(self).asked += 1
        body = b"projects/1234/regions/europe-west1" if self.headers["Metadata-Flavor"] == "Google" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_the_metadata_server_tells_the_region(environ: pytest.MonkeyPatch) -> None:
    """If no variable names the region, the metadata server is asked once."""
    set_all(environ, {"GOOGLE_CLOUD_PROJECT": "shop"})

    with http.server.HTTPServer(("127.0.0.1", 0), _Metadata) as server:
        environ.setenv(metadata.HOST_VARIABLE, f"127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        assert location.find() == location.Location("shop", "europe-west1")
        thread.join()

    assert location.find().region == "europe-west1"
    assert _Metadata.asked == 1


@pytest.mark.parametrize("start", [defer, defer_async])
def test_defer_raises_it(environ: pytest.MonkeyPatch, start: Any) -> None:
    """An invalid location is raised by defer() and defer_async() at once, without an RPC."""
    environ.setenv(CLOUD_TASKS_VARIABLE, "true")
    environ.setenv("GOOGLE_CLOUD_PROJECT", "shop")

    with pytest.raises(LocationError, match="region is not known"):
        start(sample.note)


def test_what_it_cannot_do_is_said() -> None:
    """The headers that Cloud Tasks drops are reported; deadlines and fractions of seconds are supported."""
    retry_options = TaskRetryOptions(min_backoff_seconds=0.5, max_backoff_seconds=2, task_age_limit=60)
    headers = {"X-AppEngine-Fail-Fast": "1", "X-Mine": "1"}

    assert (
        CloudTasksEngine(AppEngineTargets()).unsupported(Options(deadline_seconds=30.0, retry_options=retry_options))
        == []
    )
    (problem,) = CloudTasksEngine(AppEngineTargets()).unsupported(Options(headers=headers))
    assert "X-AppEngine-Fail-Fast" in problem


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("", None),
        (" ", None),
        ("localhost:8123", "localhost:8123"),
        ("127.0.0.1:8123/", "127.0.0.1:8123"),
        ("[::1]:8123", "[::1]:8123"),
        ("http://tasks.test:8123", "tasks.test:8123"),
    ],
)
def test_the_emulators_address(environ: pytest.MonkeyPatch, value: str, address: str | None) -> None:
    """An address on this machine is accepted as it is, and another address only with http://."""
    environ.setenv(location.EMULATOR_VARIABLE, value)

    assert location.emulator_address() == address


@pytest.mark.parametrize("value", ["localhost", "8123", "https://localhost:8123", "tasks.test:8123", "10.0.0.1:8123"])
def test_a_doubtful_address_of_an_emulator_is_an_error(environ: pytest.MonkeyPatch, value: str) -> None:
    """An invalid address is rejected, and so is an unencrypted connection to another machine without http://."""
    environ.setenv(location.EMULATOR_VARIABLE, value)

    with pytest.raises(SettingsError, match=location.EMULATOR_VARIABLE):
        location.emulator_address()


def test_the_emulator_is_used_after_a_fork(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If a server loads the app and then forks workers, as gunicorn does, both parent and child can enqueue."""
    script = textwrap.dedent(
        """
        import os, sys

        from tests.support.engines.apps import PARENT, environ_for
        from tests.support.engines.cloudtasks import CloudTasks


        def main():
            server_pid_reader, server_pid_writer = os.pipe()
            # gRPC's own server does not live through a fork, so that it has a process of its own, from the start.
            to_server, from_test = os.pipe()
            server = os.fork()
            if server == 0:
                os.close(from_test)
                with CloudTasks(PARENT, ["default"]) as cloud:
                    os.write(server_pid_writer, cloud.address.encode())
                    os.read(to_server, 1)
                    print(len(cloud.held()), flush=True)
                os._exit(0)
            address = os.read(server_pid_reader, 100).decode()
            import types
            os.environ.update(environ_for(types.SimpleNamespace(address=address)), DEFERRED_REQUIRE_SIGNATURE="false")
            from tests.support import sample
            from deferred_middleware import defer, defer_async

            defer(sample.note, "parent")
            for _ in range(2):
                child = os.fork()
                if child == 0:
                    defer(sample.note, "child")
                    defer_async(sample.note, "child").result(30)
                    os._exit(0)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            defer_async(sample.note, "parent again").result(30)
            os.write(from_test, b"x")
            assert os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) == 0


        main()
        """
    )
    (tmp_path / "forking.py").write_text(script)
    environ.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))

    done = subprocess.run(
        [sys.executable, str(tmp_path / "forking.py")], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["6"]


def test_a_warning_says_what_is_not_sent(environ: pytest.MonkeyPatch) -> None:
    """A warning names the options that the engine doesn't support, before the engine is called."""
    set_all(environ, {CLOUD_TASKS_VARIABLE: "true", "GOOGLE_CLOUD_PROJECT": "shop", "LOCATION_ID": "us-east1"})
    environ.setenv(location.EMULATOR_VARIABLE, "127.0.0.1:9")
    install_settings(Settings(enqueue_seconds=0.1))

    with pytest.warns(DeferredWarning, match="X-AppEngine-Fail-Fast"):
        defer_async(sample.note, _headers={"X-AppEngine-Fail-Fast": "1"}).exception(60)


def shared_message(**facts: Any) -> Any:
    """Return the message that tasks with these options share."""
    given: dict[str, Any] = {"queue": "q", "path": "/p", "headers": {}, "signed": False}
    template = CloudTasksEngine(AppEngineTargets()).encode(TaskTemplate(**{**given, **facts}))
    return template.encoded[0]


@pytest.fixture
def located(environ: pytest.MonkeyPatch) -> None:
    """Set the location of the queues."""
    set_all(environ, {"GOOGLE_CLOUD_PROJECT": "shop", "LOCATION_ID": "us-east1"})


@pytest.mark.usefixtures("located")
@pytest.mark.parametrize(
    ("target", "service", "version", "instance"),
    [("worker", "worker", "", ""), ("v1.worker", "worker", "v1", ""), ("0.v1.worker", "worker", "v1", "0")],
)
def test_a_target_becomes_a_routing(target: str, service: str, version: str, instance: str) -> None:
    """Each label of the target is in the field that Cloud Tasks expects, and no other field is set."""
    routing = shared_message(target=target).app_engine_http_request.app_engine_routing

    assert (routing.service, routing.version, routing.instance) == (service, version, instance)


@pytest.mark.usefixtures("located")
def test_without_a_target_the_version_that_enqueues_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a target, the service and version that enqueues runs the task."""
    monkeypatch.setattr(process, "_deployment", Deployment(service="api", version="v2"))

    routing = shared_message().app_engine_http_request.app_engine_routing

    assert (routing.service, routing.version) == ("api", "v2")


@pytest.mark.usefixtures("located")
def test_durations_keep_their_fractions() -> None:
    """The dispatch deadline and the retry options keep their microseconds."""
    options = TaskRetryOptions(task_retry_limit=3, task_age_limit=60, min_backoff_seconds=2.3, max_backoff_seconds=4.5)

    message = shared_message(retry_options=options, deadline_seconds=30.25)

    assert message.dispatch_deadline.ToMicroseconds() == 30_250_000
    assert message.retry_config.max_attempts == 4
    assert message.retry_config.max_retry_duration.ToMicroseconds() == 60_000_000
    assert message.retry_config.min_backoff.ToMicroseconds() == 2_300_000
    assert message.retry_config.max_backoff.ToMicroseconds() == 4_500_000


@pytest.mark.usefixtures("located")
def test_headers_that_cloud_tasks_sets_itself_are_not_sent() -> None:
    """Headers that Cloud Tasks sets itself are not sent, because it would reject or drop them."""
    headers = {"Host": "h", "X-AppEngine-Fail-Fast": "1", "X-Google-Mine": "1", "X-Mine": "1"}

    assert dict(shared_message(headers=headers).app_engine_http_request.headers) == {"X-Mine": "1"}


def test_the_eta_is_sent_to_the_microsecond_and_only_if_it_is_to_come(located: None) -> None:
    """A task that is due now has no schedule time, so that a slow clock doesn't delay it."""
    template = CloudTasksEngine(AppEngineTargets()).encode(TaskTemplate(queue="q", path="/p", headers={}, signed=True))
    later = round(time.time()) + 1000.123457

    due_later = cloud_tasks._task_of(TaskMessage(template, "n", b"b", later, "s"), "full/name")
    due_now = cloud_tasks._task_of(TaskMessage(template, "n", b"b", time.time(), "s"), "full/name")

    assert due_later.schedule_time.ToMicroseconds() == round(later * 1e6)
    assert due_later.app_engine_http_request.headers["X-Deferred-Signature"] == "s"
    assert not due_now.HasField("schedule_time")


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (9, "The queue does not exist.", taskqueue.UnknownQueueError),
        (3, "apphosting::ExecutorServiceError::TOMBSTONED_TASK", taskqueue.TombstonedTaskError),
        (3, "ExecutorServiceError::NO_SUCH_NAME", taskqueue.Error),
        (99, "from the future", taskqueue.Error),
    ],
)
def test_a_statuss_message_may_say_more(status: int, message: str, kind: type[Exception]) -> None:
    """An App Engine error in the message of a status takes precedence, as in the SDK."""
    failure = cloud_tasks._failure_of_status(status, message, "", of_whole_add=True)

    assert isinstance(failure.error, kind)


def test_a_batch_that_is_refused_whole_fails_each_task(located: None) -> None:
    """The operation's error is that of every task, if it tells of none in particular."""
    operation = operations_pb2.Operation(done=True)
    operation.error.code, operation.error.message = 9, "The queue does not exist."
    answer = types.SimpleNamespace(operation=operation, metadata=None)
    client: Any = types.SimpleNamespace(batch_create_tasks=lambda request, timeout: answer)
    template = CloudTasksEngine(AppEngineTargets()).encode(TaskTemplate(queue="q", path="/p", headers={}, signed=True))
    messages = [TaskMessage(template, name, b"b", time.time(), "s") for name in ("one", "two", "three")]

    failures = cloud_tasks._create_batch(client, messages, 1.0)

    assert [type(failure) for failure in failures] == [AddFailure] * 3
    assert all(isinstance(failure, AddFailure) and failure.of_whole_add for failure in failures)


def test_a_call_ends_before_cloud_tasks_would_refuse_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of a transaction is sent with a deadline of 20 seconds."""
    deadlines: list[float] = []

    class Client:
        def create_task(self, *, request: object, timeout: float) -> None:
            deadlines.append(timeout)

    engine = CloudTasksEngine(AppEngineTargets())
    monkeypatch.setattr(engine, "_client", Client)
    engine.send("projects/shop/locations/us-east1/queues/default", b"")

    assert deadlines == [20.0]

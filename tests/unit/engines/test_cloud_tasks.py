"""Tests of Cloud Tasks: project and region, what it can't do, the emulator, and threads for calls."""

from __future__ import annotations

import contextvars
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from google.appengine.api.taskqueue import TaskRetryOptions, cloudtask
from google.appengine.runtime.request_environment import current_request

from deferred_middleware import DeferredWarning, Settings, SettingsError, defer, defer_async
from deferred_middleware.calls.options import Options
from deferred_middleware.config.settings import install_settings
from deferred_middleware.engines import cloudtasks
from deferred_middleware.errors import LocationError
from tests.support import sample
from tests.support.repository import ROOT

_VARIABLES = ("GAE_APPLICATION", "GOOGLE_CLOUD_PROJECT", "LOCAL_GCP_REGION", *cloudtasks.REGION_VARIABLES)


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing of where the app is, on a machine where no metadata server tells either."""
    for name in _VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cloudtask, "_CACHED_REGION", None)

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no metadata server here")

    monkeypatch.setattr(cloudtask.urllib.request, "urlopen", unreachable)
    return monkeypatch


def set_all(environ: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Set environment variables."""
    for name, value in variables.items():
        environ.setenv(name, value)


@pytest.mark.parametrize("value", [None, "", "false", "1", "yes"])
def test_it_is_off_unless_switched_on(environ: pytest.MonkeyPatch, value: str | None) -> None:
    """It is on where the SDK takes it to be on, and nowhere else."""
    if value is None:
        environ.delenv(cloudtasks.ENABLED_VARIABLE, raising=False)
    else:
        environ.setenv(cloudtasks.ENABLED_VARIABLE, value)

    assert not cloudtasks.is_enabled()
    assert not cloudtask.is_cloudtask_push_queue_enabled()
    environ.setenv(cloudtasks.ENABLED_VARIABLE, "True")
    assert cloudtasks.is_enabled()
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
    """Where project and region are known, nothing is raised."""
    set_all(environ, variables)

    cloudtasks.check_location()


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
            "LOCATION_ID",
            "GAE_REGION says us-east1",
        ),
        ({"GOOGLE_CLOUD_PROJECT": "shop", "LOCAL_GCP_REGION": "here"}, "LOCAL_GCP_REGION", "'here'"),
    ],
)
def test_a_doubtful_location_is_an_error(
    environ: pytest.MonkeyPatch, variables: dict[str, str], names: str, why: str
) -> None:
    """The error names the variable and what is wrong with it, before anything is sent to a wrong region."""
    set_all(environ, variables)

    with pytest.raises(LocationError, match=names) as caught:
        cloudtasks.check_location()
    assert why in str(caught.value)


def test_the_metadata_server_tells_the_region(environ: pytest.MonkeyPatch) -> None:
    """Where no variable names the region, the metadata server's answer counts, before that of LOCAL_GCP_REGION."""
    set_all(environ, {"GOOGLE_CLOUD_PROJECT": "shop", "LOCAL_GCP_REGION": "Nowhere"})
    environ.setattr(cloudtask, "_CACHED_REGION", "europe-west1")

    cloudtasks.check_location()


@pytest.mark.parametrize("start", [defer, defer_async])
def test_defer_raises_it(environ: pytest.MonkeyPatch, start: Any) -> None:
    """A doubtful location is an error of defer and of defer_async at once, and no RPC's."""
    environ.setenv(cloudtasks.ENABLED_VARIABLE, "true")
    environ.setenv("GOOGLE_CLOUD_PROJECT", "shop")

    with pytest.raises(LocationError, match="region is not known"):
        start(sample.note)


def test_what_it_cannot_do_is_said() -> None:
    """A dispatch deadline and fractions of seconds in retry options are named, and nothing else is."""
    retry_options = TaskRetryOptions(min_backoff_seconds=0.5, max_backoff_seconds=2, task_age_limit=60)

    first, second = cloudtasks.unsupported(Options(deadline_seconds=30.0, retry_options=retry_options))

    assert "_deadline=30" in first
    assert "min_backoff_seconds=0.5" in second
    assert cloudtasks.unsupported(Options(retry_options=TaskRetryOptions(task_retry_limit=3))) == []


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
    """An address of this machine is taken as it is, another one with http://."""
    environ.setenv(cloudtasks.EMULATOR_VARIABLE, value)

    assert cloudtasks.emulator() == address


@pytest.mark.parametrize("value", ["localhost", "8123", "https://localhost:8123", "tasks.test:8123", "10.0.0.1:8123"])
def test_a_doubtful_address_of_an_emulator_is_an_error(environ: pytest.MonkeyPatch, value: str) -> None:
    """What is no address, and an unencrypted connection to another machine that nobody asked for, are refused."""
    environ.setenv(cloudtasks.EMULATOR_VARIABLE, value)

    with pytest.raises(SettingsError, match=cloudtasks.EMULATOR_VARIABLE):
        cloudtasks.emulator()


def test_a_call_sees_its_callers_environment_and_context() -> None:
    """A thread that served one caller before has another one's request and context variables for the next."""
    pool = cloudtasks.CallersPool(1)
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")

    def look() -> tuple[str | None, str]:
        return current_request.environ.get("WHOSE"), variable.get()

    def ask(whose: str) -> tuple[str | None, str]:
        current_request.environ["WHOSE"] = whose
        variable.set(whose)
        seen: tuple[str | None, str] = pool.submit(look).result(60)
        return seen

    before = dict(current_request.environ)
    try:
        assert contextvars.copy_context().run(ask, "first") == ("first", "first")
        assert contextvars.copy_context().run(ask, "second") == ("second", "second")
    finally:
        current_request.environ.clear()
        current_request.environ.update(before)
    assert pool.submit(variable.get).result(60) == "nobody's"


def test_what_a_call_raises_is_its_result() -> None:
    """The thread is there for the next call."""
    pool = cloudtasks.CallersPool(1)

    assert isinstance(pool.submit(sample.raises, KeyError("no")).exception(60), KeyError)
    assert pool.submit(int, "7").result(60) == 7


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # there are threads of pytest's own
def test_a_forked_process_has_threads_of_its_own() -> None:
    """After a fork the pool's threads are gone, and calls of the child run all the same."""
    pool = cloudtasks.CallersPool(2)
    pool.submit(int).result(60)

    child = os.fork()
    if child == 0:  # pragma: no cover - in the child
        try:
            os._exit(pool.submit(int, "7").result(20))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_the_emulator_is_used_after_a_fork(environ: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server that loads the app and forks its workers, as gunicorn does, has enqueues in parent and child."""
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


@pytest.mark.filterwarnings("ignore:.*utcfromtimestamp:DeprecationWarning")  # the SDK's, from Python 3.12 on
def test_a_warning_says_what_is_not_told(environ: pytest.MonkeyPatch) -> None:
    """It warns of what this engine can't do, before it asks it."""
    set_all(environ, {cloudtasks.ENABLED_VARIABLE: "true", "GOOGLE_CLOUD_PROJECT": "shop", "LOCATION_ID": "us-east1"})
    environ.setenv(cloudtasks.EMULATOR_VARIABLE, "127.0.0.1:9")
    install_settings(Settings(enqueue_seconds=0.1))

    with pytest.warns(DeferredWarning, match="_deadline=60"):
        defer_async(sample.note, _deadline=60).exception(60)

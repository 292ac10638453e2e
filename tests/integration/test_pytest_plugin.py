"""The pytest plugin in users' projects: auto-discovery, its own processes, and the frameworks' test clients."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FLASK_APP = """
from flask import Flask
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer

sent = []
app = Flask(__name__)
app.wsgi_app = wrap_wsgi_app(DeferredMiddleware(app.wsgi_app))


def send_welcome(user, loud=False):
    if user == "nobody":
        raise LookupError("no such user")
    sent.append((user, loud))


@app.post("/signup/<user>")
def signup(user):
    defer(send_welcome, user, _queue="mail", _countdown=60)
    return "", 202
"""

FLASK_TESTS = """
import pytest
import main
from main import app, send_welcome


@pytest.fixture
def deferred_app():
    return app.wsgi_app


@pytest.mark.parametrize("user", [f"user{n}" for n in range(12)])
def test_signup(deferred_tasks, user):
    deferred_tasks.assert_nothing_enqueued()
    assert app.test_client().post(f"/signup/{user}").status_code == 202
    deferred_tasks.assert_enqueued(send_welcome, user, _queue="mail", _countdown=60)
    main.sent.clear()
    assert deferred_tasks.run_all() == []
    deferred_tasks.clock.advance(61)
    deferred_tasks.run_all()
    assert main.sent == [(user, False)]


def test_failure(deferred_tasks):
    app.test_client().post("/signup/nobody")
    with pytest.raises(LookupError, match="no such user"):
        deferred_tasks.run(attempts=2)
    assert len(deferred_tasks.runs) == 2


def test_wrong_expectation(deferred_tasks):
    app.test_client().post("/signup/ann")
    deferred_tasks.assert_enqueued(send_welcome, "bob", loud=True)
"""

WEBTEST_TESTS = """
import main
import webtest


def test_signup(deferred_tasks):
    client = webtest.TestApp(main.app.wsgi_app)
    deferred_tasks.app = main.app.wsgi_app
    client.post("/signup/ann", status=202)
    deferred_tasks.run_all(include_scheduled=True)
    assert main.sent == [("ann", False)]
"""

DJANGO_APP = """
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from deferred_middleware import DeferredMiddleware, defer

settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="of-this-test", ALLOWED_HOSTS=["*"], DEBUG=True)
sent = []


def send_welcome(user):
    sent.append(user)


def signup(request, user):
    defer(send_welcome, user)
    return HttpResponse(status=202)


urlpatterns = [path("signup/<user>", signup)]
application = DeferredMiddleware(get_wsgi_application())
"""

DJANGO_TESTS = """
import main
from django.test import Client


def test_signup(deferred_tasks):
    deferred_tasks.app = main.application
    assert Client().post("/signup/ann").status_code == 202
    deferred_tasks.assert_enqueued(main.send_welcome, "ann")
    deferred_tasks.run()
    assert main.sent == ["ann"]
"""

UNITTEST = """
import unittest
from deferred_middleware.testing import capture_tasks
import main


class SignupTest(unittest.TestCase):
    def test_signup(self):
        with capture_tasks(main.app.wsgi_app) as tasks:
            main.app.test_client().post("/signup/ann")
            tasks.run_all(include_scheduled=True)
        self.assertEqual(main.sent, [("ann", False)])


if __name__ == "__main__":
    unittest.main()
"""


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a user's project, without our environment variables."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DEFERRED_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environ, capture_output=True, text=True, timeout=120
    )


def project(directory: Path, **sources: str) -> Path:
    """Write a project's modules."""
    for name, source in sources.items():
        (directory / f"{name}.py").write_text(source)
    return directory


def counts(output: str) -> dict[str, int]:
    """Return the counts in pytest's summary."""
    return {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?)", output.splitlines()[-1])}


@pytest.mark.parametrize("parallel", ["0", "2"])
def test_a_flask_project_tests_its_tasks(tmp_path: Path, parallel: str) -> None:
    """The fixture captures and runs tasks, isolates tests and shows differences, with and without xdist."""
    where = project(tmp_path, main=FLASK_APP, test_main=FLASK_TESTS)

    done = run(where, "-m", "pytest", "-q", "-n", parallel)

    assert counts(done.stdout) == {"passed": 13, "failed": 1}, done.stdout + done.stderr
    assert "user: expected 'bob', enqueued with 'ann'" in done.stdout
    assert "loud: expected True, enqueued with False" in done.stdout


@pytest.mark.parametrize(("app", "tests"), [(FLASK_APP, WEBTEST_TESTS), (DJANGO_APP, DJANGO_TESTS)])
def test_other_clients(tmp_path: Path, app: str, tests: str) -> None:
    """The test clients of WebTest and Django enqueue into the fixture like Flask's."""
    where = project(tmp_path, main=app, test_main=tests)

    done = run(where, "-m", "pytest", "-q")

    assert counts(done.stdout) == {"passed": 1}, done.stdout + done.stderr


def test_unittest_has_the_context_manager(tmp_path: Path) -> None:
    """With unittest, the context manager does the same as the fixture."""
    where = project(tmp_path, main=FLASK_APP, test_main=UNITTEST)

    done = run(where, "test_main.py")

    assert done.returncode == 0, done.stdout + done.stderr

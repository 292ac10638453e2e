"""A stock Django project, set up and developed as ``docs/frameworks.rst`` says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import blocks
from tests.support.repository import ROOT
from tests.support.running import TELL, Recorder, Serve, Server

WAIT_SECONDS = 60.0
JOBS = TELL + "\ndef send(user):\n    tell(sent=user)\n"
DEFER = "from deferred_middleware import defer; from orders.jobs import send; defer(send, {user!r})"


def documented(before: str) -> str:
    """Return the first code block of the page after the text ``before``."""
    page = (ROOT / "docs" / "frameworks.rst").read_text()
    line = page[: page.index(before)].count("\n")
    return next(block.body for block in blocks(ROOT / "docs" / "frameworks.rst") if block.line > line)


class Project:
    """A project in ``directory``, whose processes end with the test."""

    def __init__(self, directory: Path, recorder: Recorder) -> None:
        self.directory = directory
        self.environ = {
            **os.environ,
            "RECORDER": recorder.path,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONUNBUFFERED": "1",
        }
        for name in ("DJANGO_SETTINGS_MODULE", "DEFERRED_SECRET_KEYS"):
            self.environ.pop(name, None)
        self._started: list[subprocess.Popen[str]] = []

    def manage(self, *words: str, connected: bool = True) -> subprocess.CompletedProcess[str]:
        """Run ``manage.py``, connected to the local server or not."""
        before = ["-m", "deferred_middleware", "exec", sys.executable] if connected else []
        command = [sys.executable, *before, "manage.py", *words]
        # The program replaces the command, so the output is that of both.
        return subprocess.run(
            command,
            cwd=self.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )

    def runserver(self, port: int, *, connected: bool) -> Path:
        """Start ``runserver``, and wait until it answers; return the path of its output."""
        before = ["-m", "deferred_middleware", "exec", sys.executable] if connected else []
        command = [sys.executable, *before, "manage.py", "runserver", "--noreload", str(port)]
        output = self.directory / "runserver.log"
        with output.open("w") as stream:
            self._started.append(
                subprocess.Popen(command, cwd=self.directory, env=self.environ, stdout=stream, stderr=stream, text=True)
            )
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end and self._started[-1].poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/no-such-page", timeout=10)
            except urllib.error.HTTPError as error:
                error.close()
                return output
            except OSError:
                time.sleep(0.05)
        raise AssertionError(output.read_text())

    def stop(self) -> None:
        """End the processes."""
        for process in self._started:
            process.terminate()
            process.wait(WAIT_SECONDS)


@pytest.fixture
def project(tmp_path: Path, recorder: Recorder) -> Iterator[Project]:
    """A project of ``django-admin startproject`` with the changes that the manual describes."""
    directory = tmp_path / "app"
    directory.mkdir(exist_ok=True)
    made = Project(directory, recorder)
    admin = [sys.executable, "-m", "django", "startproject", "shop", "."]
    subprocess.run(admin, cwd=directory, env=made.environ, check=True, timeout=WAIT_SECONDS)
    commands = directory / "orders" / "management" / "commands"
    commands.mkdir(parents=True)
    for package in (commands, *commands.parents[:2]):
        (package / "__init__.py").write_text("")
    (directory / "orders" / "jobs.py").write_text(JOBS)
    (commands / "send_invoices.py").write_text(
        "from django.core.management.base import BaseCommand\n"
        "from deferred_middleware import defer\n"
        "from orders.jobs import send\n"
        "class Command(BaseCommand):\n"
        "    def handle(self, **options):\n"
        "        defer(send, 'command')\n"
    )
    settings = directory / "shop" / "settings.py"
    text = settings.read_text()
    text = text.replace("INSTALLED_APPS = [", 'INSTALLED_APPS = ["deferred_middleware.contrib.django", "orders",')
    text = text.replace(
        "MIDDLEWARE = [", 'MIDDLEWARE = ["deferred_middleware.contrib.django.middleware.TaskMiddleware",'
    )
    settings.write_text(text)
    (directory / "shop" / "urls.py").write_text(
        "from django.http import HttpResponse\n"
        "from django.urls import include, path\n"
        "from deferred_middleware import defer\n"
        "from orders.jobs import send\n"
        "def signup(request):\n"
        "    defer(send, 'view')\n"
        "    return HttpResponse('ok')\n"
        "def broken(request):\n"
        "    raise LookupError('broken view')\n"
        "urlpatterns = [path('', include('deferred_middleware.contrib.django.urls')), path('signup', signup),\n"
        "    path('broken', broken)]\n"
    )
    wsgi = directory / "shop" / "wsgi.py"
    wsgi.write_text(
        wsgi.read_text().replace(
            "application = get_wsgi_application()",
            "from google.appengine.api import wrap_wsgi_app\napplication = wrap_wsgi_app(get_wsgi_application())",
        )
    )
    yield made
    made.stop()


def get(url: str) -> str:
    """Return the body of a page."""
    with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as answer:
        body: bytes = answer.read()
        return body.decode()


def failure(url: str, body: bytes | None = None) -> tuple[int, str]:
    """Return the status and the body of an error."""
    with pytest.raises(urllib.error.HTTPError) as failed:
        urllib.request.urlopen(url, body, timeout=WAIT_SECONDS)
    with failed.value as error:
        text: bytes = error.read()
        return error.code, text.decode()


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def defer_in_commands(project: Project, recorder: Recorder) -> None:
    """Defer from a shell and from a management command, and see that the calls run."""
    assert "deferred-middleware exec python manage.py shell" in documented("While the server runs, start a shell")
    done = project.manage("shell", "-c", DEFER.format(user="shell"))
    assert done.returncode == 0, done.stderr
    assert recorder.next() == {"sent": "shell"}
    done = project.manage("send_invoices")
    assert done.returncode == 0, done.stderr
    assert recorder.next() == {"sent": "command"}


def test_a_stock_project_under_serve(project: Project, serve: Serve, recorder: Recorder) -> None:
    """A view, a shell and a management command defer; the site's failures are logged once."""
    check = project.manage("check", connected=False)
    assert "no issues" in check.stdout, check.stderr
    server = start(project, serve, apps=["shop.wsgi:application"])

    assert get(f"{server.services['default']}/signup") == "ok"
    assert recorder.next() == {"sent": "view"}
    defer_in_commands(project, recorder)
    assert failure(f"{server.services['default']}/broken")[0] == 500
    server.wait_for_output("LookupError: broken view")
    assert server.output.count("LookupError: broken view") == 1


def test_runserver_beside_the_local_server(project: Project, serve: Serve, recorder: Recorder) -> None:
    """Tasks of ``runserver`` are kept by the local server, and run in ``runserver``."""
    port = free_port()
    start(project, serve, apps=[], services=[f"default=http://127.0.0.1:{port}"])
    project.runserver(port, connected=True)

    assert get(f"http://127.0.0.1:{port}/signup") == "ok"
    assert recorder.next() == {"sent": "view"}
    defer_in_commands(project, recorder)


def test_runserver_alone_says_what_to_do(project: Project) -> None:
    """Without the local server, the site starts with a warning; ``defer`` raises, and no request runs a task."""
    port = free_port()
    output = project.runserver(port, connected=False)

    assert "deferred-middleware serve shop.wsgi:application" in output.read_text()
    assert "deferred-middleware serve" in failure(f"http://127.0.0.1:{port}/signup")[1]
    assert failure(f"http://127.0.0.1:{port}/_cb/deferred/orders.jobs/send", b"x")[0] == 500
    shell = project.manage("shell", "-c", DEFER.format(user="nobody"), connected=False)
    assert "deferred-middleware exec" in shell.stderr


def test_exec_says_if_no_server_runs(project: Project) -> None:
    """``exec`` without a running server, or of a program that doesn't exist, is one sentence."""
    done = project.manage("check")

    assert (done.returncode != 0, done.stdout) == (True, "")
    assert "No server is running on .deferred; start it with 'deferred-middleware serve'" in done.stderr
    assert "Traceback" not in done.stderr


def start(project: Project, serve: Serve, **options: Any) -> Server:
    """Start the local server in a copy of the project, which is the project from now on."""
    names = sorted(project.directory.rglob("*.py"), key=lambda path: len(path.parts))
    server = serve({str(path.relative_to(project.directory)): path.read_text() for path in names}, **options)
    project.directory = server.directory
    return server

"""Tests of the host that captured tasks are delivered to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import flask
import pytest

from deferred_middleware import defer
from deferred_middleware.contrib.flask import Deferred
from deferred_middleware.testing import capture_tasks
from tests.support import sample

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

hosts: list[str] = []


def site(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Record the host, as a site that looks at it."""
    hosts.append(environ["HTTP_HOST"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return []


@pytest.fixture(autouse=True)
def forget() -> None:
    """Forget the hosts of other tests."""
    hosts.clear()


@pytest.mark.parametrize("host", ["shop.example.com", "shop.example.com:8443"])
def test_a_flask_request_gives_its_host(host: str) -> None:
    """A task is delivered to the host of the request that deferred it."""
    app = flask.Flask("shop")
    app.config["TRUSTED_HOSTS"] = ["shop.example.com"]
    Deferred(app)
    app.add_url_rule("/", view_func=lambda: str(defer(sample.note) and ""))

    with capture_tasks(app.wsgi_app) as tasks:
        assert app.test_client().get("/", headers={"Host": host}).status_code == 200
        assert tasks.run().task.host == host


@pytest.mark.parametrize(("configured", "host"), [(True, "testserver"), (False, "localhost")])
def test_outside_of_requests_it_is_the_test_clients_host(
    monkeypatch: pytest.MonkeyPatch, configured: bool, host: str
) -> None:
    """Without a request the host is the one that the framework's own test client sends."""
    conf: Any = type(sys)("django.conf")
    conf.settings = type(sys)("settings")
    conf.settings.configured, conf.settings.DEBUG = configured, False
    monkeypatch.setitem(sys.modules, "django.conf", conf)

    with capture_tasks(site) as tasks:
        defer(sample.note, _target="v1.worker")
        tasks.run()

    assert hosts == [host]


def test_the_test_can_set_the_host() -> None:
    """The argument and the attribute set the host of the tasks that are enqueued from then on."""
    with capture_tasks(site, host="one.test") as tasks:
        defer(sample.note)
        tasks.host = "two.test"
        defer(sample.note)
        tasks.run_all()

    assert sorted(hosts) == ["one.test", "two.test"]

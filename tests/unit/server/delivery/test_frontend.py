"""The front end of an app process: whose platform headers it accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from deferred_middleware.server.delivery.frontend import Frontend

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

TOKEN = "only-the-queue-process-knows"


def seen(**headers: str) -> dict[str, Any]:
    """Send a request with these ``environ`` entries through a front end; return the app's ``environ``."""
    got: dict[str, Any] = {}

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        got.update(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    environ: dict[str, Any] = {"REMOTE_ADDR": "192.0.2.7", **headers}
    setup_testing_defaults(environ)
    frontend = Frontend(app, delivery_token=TOKEN, api_ticket="ticket", default_hostname="127.0.0.1:8080")
    # QUERY_STRING: PEP 3333 requires a str, and validator warns if it is missing.
    environ.setdefault("QUERY_STRING", "")
    result = validator(frontend)(environ, lambda *_args: lambda _data: None)
    list(result)
    result.close()  # type: ignore[attr-defined]
    return got


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", "nöt-äscii"])
def test_outsiders_send_no_platform_headers(token: str | None) -> None:
    """Without the right token, every X-AppEngine header is removed."""
    headers = {} if token is None else {"HTTP_X_DEFERRED_SERVER_TOKEN": token}
    got = seen(HTTP_X_APPENGINE_QUEUENAME="default", HTTP_X_APPENGINE_USER_IS_ADMIN="1", **headers)
    assert "HTTP_X_APPENGINE_QUEUENAME" not in got
    assert "HTTP_X_APPENGINE_USER_IS_ADMIN" not in got


def test_other_spellings_are_removed_too() -> None:
    """Every key that means an X-AppEngine header is removed, whatever its spelling."""
    got = seen(**{"HTTP_x_appengine-TaskName": "forged"})
    assert "forged" not in got.values()


def test_the_queue_process_is_believed() -> None:
    """With the token, a task's headers reach the app."""
    got = seen(HTTP_X_DEFERRED_SERVER_TOKEN=TOKEN, HTTP_X_APPENGINE_QUEUENAME="default")
    assert got["HTTP_X_APPENGINE_QUEUENAME"] == "default"
    assert got["HTTP_X_APPENGINE_USER_IP"] == "0.1.0.2"


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
def test_the_token_never_reaches_the_app(token: str) -> None:
    """The token is removed, so an app that displays its headers doesn't reveal it."""
    assert "HTTP_X_DEFERRED_SERVER_TOKEN" not in seen(HTTP_X_DEFERRED_SERVER_TOKEN=token)


def test_an_outsiders_address_is_the_connections() -> None:
    """Without the token, the user IP is the connection's address, because the SDK copies it into REMOTE_ADDR."""
    assert seen(HTTP_X_APPENGINE_USER_IP="0.1.0.2")["HTTP_X_APPENGINE_USER_IP"] == "192.0.2.7"


def test_every_request_gets_what_the_platform_sets() -> None:
    """Every request gets the ticket, hostname and log ID that the SDK depends on."""
    got = seen(HTTP_X_APPENGINE_API_TICKET="stolen", HTTP_X_APPENGINE_REQUEST_LOG_ID="mine")
    assert got["HTTP_X_APPENGINE_API_TICKET"] == "ticket"
    assert got["HTTP_X_APPENGINE_DEFAULT_VERSION_HOSTNAME"] == "127.0.0.1:8080"
    assert got["HTTP_X_APPENGINE_HTTPS"] == "off"
    assert got["HTTP_X_APPENGINE_REQUEST_LOG_ID"] not in ("", "mine")


def test_log_ids_differ() -> None:
    """Each request has its own log ID."""
    assert seen()["HTTP_X_APPENGINE_REQUEST_LOG_ID"] != seen()["HTTP_X_APPENGINE_REQUEST_LOG_ID"]


def test_other_headers_pass() -> None:
    """Headers that aren't the platform's are unchanged."""
    assert seen(HTTP_X_REQUEST_ID="abc")["HTTP_X_REQUEST_ID"] == "abc"


@pytest.mark.parametrize("exc_info", [None, (ValueError, ValueError("late"), None)])
def test_hop_by_hop_headers_are_left_out(exc_info: Any) -> None:
    """Headers about one connection, which an app passes on from another server, are dropped as by gunicorn."""
    kept = [("Content-Type", "text/plain"), ("X-Connection", "close"), ("Content-Length", "2")]
    dropped = ["connection", "Keep-Alive", "PROXY-AUTHENTICATE", "Proxy-Authorization", "TE", "Trailers", "Upgrade"]
    started: list[Any] = []

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [*kept, *((name, "x") for name in [*dropped, "Transfer-Encoding"])], exc_info)
        return [b"ok"]

    def start(*arguments: Any) -> Any:
        started.extend(arguments)
        return lambda _data: None

    frontend = Frontend(app, delivery_token=TOKEN, api_ticket="ticket", default_hostname="127.0.0.1:8080")
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    assert list(frontend(environ, start)) == [b"ok"]
    assert started == ["200 OK", kept] + ([exc_info] if exc_info else [])

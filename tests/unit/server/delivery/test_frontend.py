"""The front end of an app process: whose platform headers it accepts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from deferred_middleware.server.delivery.frontend import Frontend
from deferred_middleware.wire.protocol import LOCAL_SERVER_ENVIRON_KEY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


TOKEN = "only-the-queue-process-knows"


def seen(*, delivered: bool = False, **headers: str) -> dict[str, Any]:
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
    result = validator(frontend.deliver if delivered else frontend)(environ, lambda *_args: lambda _data: None)
    list(result)
    result.close()  # type: ignore[attr-defined]
    return got


def test_outsiders_send_no_platform_headers() -> None:
    """Every X-AppEngine header of a client is removed, and no client can pose as the queue process."""
    got = seen(HTTP_X_APPENGINE_QUEUENAME="default", HTTP_X_APPENGINE_USER_IS_ADMIN="1")
    assert "HTTP_X_APPENGINE_QUEUENAME" not in got
    assert "HTTP_X_APPENGINE_USER_IS_ADMIN" not in got
    assert LOCAL_SERVER_ENVIRON_KEY not in got


def test_other_spellings_are_removed_too() -> None:
    """Every key that means an X-AppEngine header is removed, whatever its spelling."""
    headers: Any = {"HTTP_x_appengine-TaskName": "forged"}
    got = seen(**headers)
    assert "forged" not in got.values()


def test_the_queue_process_is_believed() -> None:
    """The headers of a delivery reach the app, together with those that every request gets."""
    got = seen(delivered=True, HTTP_X_APPENGINE_QUEUENAME="default")
    assert got["HTTP_X_APPENGINE_QUEUENAME"] == "default"
    assert got[LOCAL_SERVER_ENVIRON_KEY] is True
    assert got["HTTP_X_APPENGINE_API_TICKET"] == "ticket"
    assert got["HTTP_X_APPENGINE_REQUEST_LOG_ID"]


def test_a_request_of_the_queue_process_over_http_is_believed() -> None:
    """With the token, the headers of a cron job reach the app."""
    got = seen(HTTP_X_DEFERRED_SERVER_TOKEN=TOKEN, HTTP_X_APPENGINE_CRON="true")
    assert got["HTTP_X_APPENGINE_CRON"] == "true"
    assert got["HTTP_X_APPENGINE_USER_IP"] == "0.1.0.2"


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "n\xf6t-\xe4scii"])
def test_another_token_is_none(token: str) -> None:
    """With a wrong token, every X-AppEngine header is removed. The token never reaches the app."""
    got = seen(HTTP_X_DEFERRED_SERVER_TOKEN=token, HTTP_X_APPENGINE_QUEUENAME="default")
    assert "HTTP_X_APPENGINE_QUEUENAME" not in got
    assert "HTTP_X_DEFERRED_SERVER_TOKEN" not in got


def test_an_outsiders_address_is_the_connections() -> None:
    """A client's user IP is the connection's address, because the SDK copies it into REMOTE_ADDR."""
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

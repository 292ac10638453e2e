"""Which requests the queue process accepts, by Host header and origin."""

from __future__ import annotations

from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from deferred_middleware.server.admin.guard import Guard, admin_names, shows_token


def answer(method: str = "GET", host: str | None = "127.0.0.1:8000", **headers: str) -> tuple[str, dict[str, str]]:
    """Return the status of a guarded request with these headers, and the response's headers."""
    environ: dict[str, object] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": "/api/v1/queues",
        "SCRIPT_NAME": "",
        "QUERY_STRING": "",
        "REMOTE_ADDR": "127.0.0.1",
    }
    setup_testing_defaults(environ)
    del environ["HTTP_HOST"]
    if host is not None:
        environ["HTTP_HOST"] = host
    environ |= {"HTTP_" + name.upper(): value for name, value in headers.items()}
    got: list[tuple[str, dict[str, str]]] = []

    def app(_environ: object, start_response: object) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Frame-Options", "SAMEORIGIN")])  # type: ignore[operator]
        return [b"fine"]

    def start_response(status: str, response_headers: list[tuple[str, str]], _exc_info: object = None) -> Any:
        got.append((status, dict(response_headers)))
        return lambda _data: None

    guarded: Any = validator(Guard(validator(app), names=admin_names("127.0.0.1", ["queue.test"])))
    result = guarded(environ, start_response)
    list(result)
    result.close()
    return got[0]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.0.0.1:9999", "queue.test", "Queue.Test:80"],
)
def test_its_own_names_are_answered(host: str) -> None:
    """The server accepts loopback's names and the allowed names, on any port."""
    assert answer(host=host)[0] == "200 OK"


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example:8000",
        "evil.example#127.0.0.1",
        "localhost.",
        "evil@127.0.0.1",
        "127.0.0.1:8000, evil.example",
        "127.0.0.1:8000\n",
        "127.0.0.1:x",
        "0.0.0.0:8000",
        "[::1",
        "a" * 10_000,
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_names_are_refused(host: str | None, method: str) -> None:
    """A missing or unknown host name, such as one used for DNS rebinding, is refused."""
    assert answer(method, host=host)[0] == "403 Forbidden"


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:8080"},
        {"origin": "http://localhost:8000"},
        {"origin": "http://127.0.0.1:8000.evil.example"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": ""},
        {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "cross-site"},
        {"origin": "http://evil.example", "sec_fetch_site": "same-origin"},
    ],
)
def test_other_sites_are_refused(method: str, headers: dict[str, str]) -> None:
    """A page of another site, or of another port on this machine, can neither read nor change anything."""
    assert answer(method, **headers)[0] == "403 Forbidden"


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"sec_fetch_site": "none"}, "200 OK"),
        ("HEAD", {"sec_fetch_site": "none"}, "200 OK"),
        ("POST", {"sec_fetch_site": "none"}, "403 Forbidden"),
        ("POST", {"origin": "http://127.0.0.1:8000", "sec_fetch_site": "same-origin"}, "200 OK"),
        ("POST", {"origin": "HTTP://127.0.0.1:8000"}, "200 OK"),
        ("POST", {}, "200 OK"),
    ],
)
def test_a_person_and_the_servers_own_page_are_not(method: str, headers: dict[str, str], status: str) -> None:
    """Typed addresses (read only), the server's own pages, and clients that send no origin are accepted."""
    assert answer(method, **headers)[0] == status


def test_answers_may_not_be_framed_or_guessed_at() -> None:
    """Each response, also a refusal, forbids framing and content sniffing, but keeps the headers that the app set."""
    _status, headers = answer()
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Frame-Options"] == "SAMEORIGIN"
    assert answer(host="evil.example")[1]["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(("shown", "expected"), [("right", True), ("wrong", False), ("", False), ("r\xe9ght", False)])
def test_the_token_is_compared(shown: str, expected: bool) -> None:
    """Only the exact token is accepted."""
    assert shows_token({"HTTP_X_DEFERRED_ADMIN_TOKEN": shown}, "right") is expected
    assert not shows_token({}, "right")


def test_any_address_is_no_name() -> None:
    """A server that listens on all addresses rejects the host 0.0.0.0, which browsers treat as loopback."""
    assert "0.0.0.0" not in admin_names("0.0.0.0", [])
    assert "192.0.2.7" in admin_names("192.0.2.7", [])

"""Requests: parameters, cookies, and addresses with other parameters."""

from __future__ import annotations

from wsgiref.util import setup_testing_defaults

import pytest

from deferred_middleware.server.admin.web.requests import PageRequest


def request(query: str = "", **headers: str) -> PageRequest:
    """Return a request for a page."""
    environ: dict[str, object] = {"QUERY_STRING": query, "PATH_INFO": "/tasks", **headers}
    setup_testing_defaults(environ)
    return PageRequest(environ, form_token="t", nonce="n")


def test_a_parameter_is_the_last_one_given() -> None:
    """Blanks around a value don't count; an absent one is the default."""
    got = request("queue=a&queue=+b+&x=")

    assert got.given("queue") == "b"
    assert got.given("nothing", "else") == "else"


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({"before": 5}, "?queue=a+b&state=failed&before=5"),
        ({"state": None}, "?queue=a+b"),
        ({"state": "", "queue": None}, "/tasks"),
        ({"queue": "<&\u202e"}, "?queue=%3C%26%E2%80%AE&state=failed"),
    ],
)
def test_the_address_of_the_page_with_other_parameters(changes: dict[str, str | None], url: str) -> None:
    """Parameters are replaced, added and removed."""
    assert request("queue=a+b&state=failed").url_with(**changes) == url


@pytest.mark.parametrize(
    ("cookies", "theme"),
    [
        ("", "auto"),
        ("deferred_theme=dark", "dark"),
        ("a=b; deferred_theme=light; c", "light"),
        ("deferred_theme=x", "auto"),
    ],
)
def test_the_theme_is_a_cookie(cookies: str, theme: str) -> None:
    """An unknown theme is the system's."""
    assert request(HTTP_COOKIE=cookies).theme == theme

"""Tests of the login page."""

from __future__ import annotations

import pytest
import webob
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.handlers.front import HandlersApp
from deferred_middleware.server.handlers.login import COOKIE, LocalUser, user_of
from tests.unit.server.handlers.test_front import app, send

PAGE = HandlersApp(app)


def post(**fields: str) -> webob.Response:
    """Send the form."""
    return send(webob.Request.blank("/_ah/login", POST=fields), PAGE)


def user_after(response: webob.Response) -> LocalUser | None:
    """Return who is logged in with the cookie that a response sets."""
    value = response.headers["Set-Cookie"].partition(";")[0]
    return user_of(webob.Request.blank("/", headers={"Cookie": value}).environ)


def test_the_form_shows_who_is_logged_in() -> None:
    """The page has a form, which keeps the URL to return to."""
    page = send(webob.Request.blank("/_ah/login?continue=http%3A//127.0.0.1%3A8080/a%3Fb%3D1"), PAGE)

    assert (page.status_int, page.content_type) == (200, "text/html")
    assert "Not logged in" in page.text
    assert 'value="/a?b=1"' in page.text
    request = webob.Request.blank("/_ah/login")
    request.cookies[COOKIE] = "ann@example.com:True:1"
    assert "Logged in as ann@example.com" in send(request, PAGE).text
    assert " checked" in send(request, PAGE).text


@pytest.mark.parametrize("admin", [True, False])
def test_logging_in_sets_the_cookie_and_returns(admin: bool) -> None:
    """After the form, the browser goes back, and the cookie says who the person is."""
    marked = {"admin": "True"} if admin else {}
    response = post(action="login", email=" ann@example.com ", **{"continue": "/back?x=1"}, **marked)

    assert (response.status_int, response.location) == (302, "http://localhost/back?x=1")
    assert user_after(response) == LocalUser(email="ann@example.com", is_admin=admin)
    assert "HttpOnly" in response.headers["Set-Cookie"]
    assert "SameSite=Lax" in response.headers["Set-Cookie"]


def test_logging_out_removes_the_cookie() -> None:
    """The form's button and the URL of ``create_logout_url`` remove the cookie."""
    for response in (
        post(action="logout", **{"continue": "/"}),
        send(webob.Request.blank("/_ah/login?action=logout&continue=/bye"), PAGE),
    ):
        assert response.status_int == 302
        assert "Max-Age=0" in response.headers["Set-Cookie"]
        assert user_after(response) is None


@pytest.mark.parametrize(
    "email", ["", "ann", "a b@example.com", "ann@example.com:True", "\u00e4@example.com", "x@y\r\nz"]
)
def test_what_is_no_address_is_told(email: str) -> None:
    """The form comes again with a sentence, and no cookie is set."""
    response = post(action="login", email=email)

    assert response.status_int == 400
    assert "That is no e-mail address." in response.text
    assert "Set-Cookie" not in response.headers


def test_a_link_can_not_log_in() -> None:
    """Only the form logs a person in."""
    assert "Set-Cookie" not in send(webob.Request.blank("/_ah/login?action=login&email=a@b.c"), PAGE).headers


@given(st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["//evil.example", "http://evil.example/x"]))
def test_the_browser_stays_on_this_server(target: str) -> None:
    """Whatever the URL to return to is, the browser stays on the host on which it has the cookie."""
    response = post(action="login", email="ann@example.com", **{"continue": target})

    assert response.status_int == 302
    location = str(response.location)
    assert location.startswith("http://localhost/")
    assert not location.startswith("http://localhost//")
    assert location.isascii()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_the_page_escapes_what_it_is_given(text: str) -> None:
    """Nothing that a URL holds becomes part of the page's markup."""
    request = webob.Request.blank("/_ah/login")
    request.GET["email"] = f'"><script>{text}'
    request.GET["continue"] = f'"><script>{text}'

    page = send(request, PAGE)

    assert page.status_int == 200
    assert "<script>" not in page.text


def test_a_body_that_is_no_form_shows_the_form() -> None:
    """A body of other bytes, or a large one, is no form."""
    for body in (b"\xff\x00", b"a=1&" * 10_000):
        assert send(webob.Request.blank("/_ah/login", POST=body), PAGE).status_int == 200


def test_the_user_id_depends_on_the_address_only() -> None:
    """The ID is a number of 21 digits, as in dev_appserver."""
    ids = {LocalUser(email=email, is_admin=admin).user_id for email in ("A@b.c", "a@b.c") for admin in (True, False)}

    assert len(ids) == 1
    (user_id,) = ids
    assert user_id.isdigit()
    assert len(user_id) == 21

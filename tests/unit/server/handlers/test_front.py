"""Tests of the app in front of an app: which rule a path has, and who may pass it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from wsgiref.validate import validator

import pytest
import webob

from deferred_middleware.server.config.handlers import HandlerRule
from deferred_middleware.server.handlers.front import HandlersApp
from deferred_middleware.server.handlers.login import COOKIE, LocalUser
from deferred_middleware.wire.protocol import LOCAL_SERVER_ENVIRON_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ADMIN = LocalUser(email="ann@example.com", is_admin=True)
GUEST = LocalUser(email="bob@example.com", is_admin=False)


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the path and the user that the headers name."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    names = ("USER_EMAIL", "USER_ID", "USER_IS_ADMIN", "USER_NICKNAME", "AUTH_DOMAIN")
    facts = [environ.get(f"HTTP_X_APPENGINE_{name}", "-") for name in names]
    return [f"app {environ['PATH_INFO']} {' '.join(facts)}".encode()]


def ask(
    rules: list[HandlerRule], url: str, user: LocalUser | None = None, *, queue: bool = False, body: bytes | None = None
) -> webob.Response:
    """Return the response to a request of ``user`` or of the task queue."""
    request = webob.Request.blank(url, POST=body)
    if user is not None:
        request.cookies[COOKIE] = f"{user.email}:{user.is_admin}:{user.user_id}"
    if queue:
        request.environ[LOCAL_SERVER_ENVIRON_KEY] = True
    return send(request, HandlersApp(app, rules))


def send(request: webob.Request, handlers: HandlersApp) -> webob.Response:
    """Return the response to a request, which is read to its end and closed."""
    response = request.send(validator(handlers))
    _ = response.body
    return response


@pytest.fixture
def rules(tmp_path: Path) -> list[HandlerRule]:
    """The rules of an app with static files, a page for those who are logged in, and an administrator's."""
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "a.css").write_text("a {}")
    (tmp_path / "secret.txt").write_text("secret")
    return [
        HandlerRule(pattern="(?:/static)/(.*)", root=str(tmp_path / "static"), file=r"\1"),
        HandlerRule(pattern="/secret", root=str(tmp_path), file="secret.txt", login="admin"),
        HandlerRule(pattern="/account.*", login="required"),
        HandlerRule(pattern="/admin.*", login="admin"),
        HandlerRule(pattern="/api/.*", login="required", auth_fail_action="unauthorized"),
        HandlerRule(pattern="/account/open"),
    ]


@pytest.mark.parametrize(
    ("url", "user", "expected"),
    [
        ("/static/a.css", None, "200 a {}"),
        ("/static", None, "200 app /static"),
        ("/static/none.css", None, "404"),
        ("/secret", None, "302 http://localhost/_ah/login?continue=%2Fsecret"),
        ("/secret", GUEST, "401 bob@example.com is not an administrator"),
        ("/secret", ADMIN, "200 secret"),
        ("/account?a=1&b=2", None, "302 http://localhost/_ah/login?continue=%2Faccount%3Fa%3D1%26b%3D2"),
        ("/account", GUEST, "200 app /account bob@example.com"),
        ("/account/open", None, "302 http://localhost/_ah/login?continue=%2Faccount%2Fopen"),
        ("/admin/x", None, "302 "),
        ("/admin/x", GUEST, "401 "),
        ("/admin/x", ADMIN, "200 app /admin/x ann@example.com"),
        ("/api/x", None, "401 Log in"),
        ("/api/x", GUEST, "200 app /api/x"),
        ("/elsewhere", None, "200 app /elsewhere - - - - -"),
        ("/my/admin", None, "200 app /my/admin"),
    ],
)
def test_the_first_rule_that_matches_decides(
    rules: list[HandlerRule], url: str, user: LocalUser | None, expected: str
) -> None:
    """A static file is served, a login keeps out who lacks it, and the app answers everything else."""
    response = ask(rules, url, user)

    found = f"{response.status_int} {response.location or response.text}"
    assert found.startswith(expected)


def test_the_users_headers_are_those_of_app_engine(rules: list[HandlerRule]) -> None:
    """The app sees the headers that the SDK's users API reads."""
    gmail = LocalUser(email="ann@gmail.com", is_admin=True)

    assert ask(rules, "/", ADMIN).text == f"app / ann@example.com {ADMIN.user_id} 1 ann@example.com gmail.com"
    assert ask([], "/", gmail).text == f"app / ann@gmail.com {gmail.user_id} 1 ann gmail.com"
    assert ask([], "/", GUEST).text.split()[4] == "0"


@pytest.mark.parametrize("url", ["/admin/task", "/account", "/api/x", "/secret", "/_ah/login"])
def test_the_queue_passes_every_login(rules: list[HandlerRule], url: str) -> None:
    """A request of the task queue reaches the app, without a user."""
    assert ask(rules, url, queue=True, body=b"x").text == f"app {url} - - - - -"


@pytest.mark.parametrize(
    "cookie", ["", "x", "ann@example.com\x01:True:1", ":True:1", "a b@c:True:1", "ann@a@b:True:1", "ann@example.com"]
)
def test_a_damaged_cookie_is_nobodys(rules: list[HandlerRule], cookie: str) -> None:
    """A cookie that the page can't have set gives no administrator."""
    request = webob.Request.blank("/admin", headers={"Cookie": f'{COOKIE}="{cookie}"'})

    assert send(request, HandlersApp(app, rules)).status_int in (302, 401)


def test_a_path_that_is_no_utf_8_reaches_the_app(rules: list[HandlerRule]) -> None:
    """Bytes that are no text match rules like any other, and don't break the server."""
    request = webob.Request.blank("/admin")
    request.environ["PATH_INFO"] = "/admin\xff"

    assert send(request, HandlersApp(app, rules)).status_int == 302
    request.environ["PATH_INFO"] = "/static/\xff\x00"
    assert send(request, HandlersApp(app, rules)).status_int == 404

"""The handlers of an ``app.yaml`` under ``serve``: static files, logins, and the SDK's users API."""

from __future__ import annotations

import http.client
import urllib.parse

import pytest

from tests.support.running import TELL, Recorder, Serve, Server

FILES = {
    "main.py": TELL
    + """
from google.appengine.api import users, wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer

def work(number):
    tell(ran=number)

def site(environ, start_response):
    path = environ["PATH_INFO"]
    user = users.get_current_user()
    who = f"{user.email()} {user.nickname()} {users.is_current_user_admin()}" if user else "nobody"
    if path == "/login":
        who = users.create_login_url("/admin/page?x=1") + " " + users.create_logout_url("/")
    elif path == "/defer":
        defer(work, 1)
        defer(work, 2, _url="/admin/tasks")
    elif path == "/admin/tasks":
        tell(ran=path)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{path} {who}".encode()]

app = wrap_wsgi_app(DeferredMiddleware(site))
""",
    "static/style.css": "a {}",
    "icon.txt": "icon",
    ".env": "secret",
    "app.yaml": r"""
runtime: python311
app_engine_apis: true
default_expiration: 1d
handlers:
- url: /static
  static_dir: static
  expiration: 5m
- url: /(.*\.txt)
  static_files: \1
  upload: .*\.txt
  mime_type: text/markdown
  http_headers:
    X-Robots-Tag: none
- url: /(admin|_cb)/.*
  script: auto
  login: admin
- url: /.*
  script: auto
""",
}


class Browser:
    """Keeps cookies, and follows no redirect."""

    def __init__(self, server: Server) -> None:
        self.host, _, port = server.services["default"].removeprefix("http://").partition(":")
        self._port = int(port)
        self._cookie = ""

    def ask(
        self, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], str]:
        """Return the status, the headers and the body of a response."""
        connection = http.client.HTTPConnection(self.host, self._port, timeout=60)
        try:
            sent = {"Cookie": self._cookie} if self._cookie else {}
            connection.request(method, path, body, {**sent, **(headers or {})})
            response = connection.getresponse()
            text = response.read().decode()
            # Waitress changes the case of names.
            found = {name.title(): value for name, value in response.getheaders()}
        finally:
            connection.close()
        if "Set-Cookie" in found:
            self._cookie = found["Set-Cookie"].partition(";")[0]
        return response.status, found, text


@pytest.fixture
def browser(serve: Serve) -> Browser:
    """A browser of the app."""
    return Browser(serve(FILES, apps=["app.yaml"]))


def test_static_files_are_served(browser: Browser) -> None:
    """Files are served with the handler's type, expiration and headers; conditional requests and ranges work."""
    status, headers, text = browser.ask("/static/style.css")
    assert (status, text, headers["Content-Type"]) == (200, "a {}", "text/css")
    assert headers["Cache-Control"] == "public, max-age=300"
    assert browser.ask("/static/style.css", headers={"If-None-Match": headers["Etag"]})[0] == 304
    assert browser.ask("/static/style.css", headers={"Range": "bytes=2-"})[2] == "{}"
    head = browser.ask("/static/style.css", "HEAD")
    assert (head[0], head[1]["Content-Length"], head[2]) == (200, "4", "")
    status, headers, text = browser.ask("/icon.txt")
    assert (text, headers["Content-Type"], headers["X-Robots-Tag"]) == ("icon", "text/markdown", "none")
    assert headers["Cache-Control"] == "public, max-age=86400"
    assert browser.ask("/none.txt")[0] == 404
    for hidden in ("/static/../main.py", "/static/%2e%2e/.deferred/secret.key", "/static/none"):
        assert browser.ask(hidden)[0] == 404


def test_a_person_logs_in(browser: Browser) -> None:
    """A page for administrators leads to the login page and back, and the users API knows the person."""
    assert browser.ask("/page")[2] == "/page nobody"
    status, headers, _ = browser.ask("/admin/page?x=1")
    assert status == 302
    login = urllib.parse.urlsplit(headers["Location"])
    assert "Not logged in" in browser.ask(f"{login.path}?{login.query}")[2]
    form = {"email": "ann@gmail.com", "action": "login", "continue": "/admin/page?x=1"}
    for admin, expected in (({}, 401), ({"admin": "True"}, 200)):
        status, headers, _ = browser.ask(login.path, "POST", urllib.parse.urlencode({**form, **admin}).encode())
        assert (status, urllib.parse.urlsplit(headers["Location"]).path) == (302, "/admin/page")
        assert browser.ask("/admin/page")[0] == expected
    assert browser.ask("/admin/page")[2] == "/admin/page ann@gmail.com ann True"
    forged = {"X-AppEngine-User-Email": "eve@example.com", "X-AppEngine-User-Is-Admin": "1"}
    assert browser.ask("/page", headers=forged)[2] == "/page ann@gmail.com ann True"

    login_url, logout_url = browser.ask("/login")[2].split()[1:]
    assert login_url.startswith("/_ah/login?")
    assert 'value="/admin/page?x=1"' in browser.ask(login_url)[2]
    assert browser.ask(logout_url)[0] == 302
    assert browser.ask("/page", headers=forged)[2] == "/page nobody"


def test_tasks_pass_the_logins(browser: Browser, recorder: Recorder) -> None:
    """Tasks run although their URLs are an administrator's, and nobody else gets there."""
    browser.ask("/defer")

    assert sorted(str(recorder.next()["ran"]) for _ in range(2)) == ["/admin/tasks", "1"]
    assert browser.ask("/_cb/deferred/main/work", "POST", b"x")[0] == 302

"""Who is logged in, and the page on which a person says so: ``/_ah/login``, as in dev_appserver.

There is no password. The page sets a cookie with an e-mail address, and whether the person is an administrator. The
app sees the user in the headers that App Engine sets, which the SDK's ``users`` API reads.
"""

from __future__ import annotations

import hashlib
import html
import re
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING

import webob

from deferred_middleware.wire.protocol import LOGIN_PATH, environ_key

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

COOKIE = "dev_appserver_login"
"""The name of the cookie. Its value is ``email:True:user_id`` or ``email:False:user_id``, as in dev_appserver."""

_EMAIL = re.compile(r"[!-9;-?A-~]{1,64}@[!-9;-?A-~]{1,255}")  # printable, without a colon and a second @
_HEADERS = {name: environ_key(f"X-AppEngine-{name}") for name in ("User-Email", "User-Id", "User-Is-Admin")}
_NICKNAME, _DOMAIN = environ_key("X-AppEngine-User-Nickname"), environ_key("X-AppEngine-Auth-Domain")
_MAX_FORM_BYTES = 16_384
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Log in</title>
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 26rem; margin: 4rem auto; padding: 0 1rem; }}
form {{ border: 1px solid #ccc; border-radius: .5rem; padding: 1.5rem; }}
input[type=text] {{ width: 100%; box-sizing: border-box; font: inherit; padding: .4rem; }}
button {{ font: inherit; padding: .3rem 1rem; }} .problem {{ color: #b00020; }}
</style></head><body><h1>{title}</h1>
<form method="post" action="{path}">{problem}
<p><label>E-mail<br><input type="text" name="email" value="{email}" autofocus></label></p>
<p><label><input type="checkbox" name="admin" value="True"{checked}> Administrator</label></p>
<input type="hidden" name="continue" value="{target}">
<p><button name="action" value="login">Log in</button> <button name="action" value="logout">Log out</button></p>
</form><p>This is the local server's page. It asks for no password.</p></body></html>
"""


@dataclass(frozen=True, kw_only=True)
class LocalUser:
    """A person who is logged in."""

    email: str
    is_admin: bool

    @property
    def user_id(self) -> str:
        """A number that is always the same for an e-mail address, made as dev_appserver makes it."""
        digest = hashlib.md5(self.email.lower().encode(), usedforsecurity=False).digest()
        return "1" + "".join(f"{byte:02d}" for byte in digest)[:20]


def user_of(environ: WSGIEnvironment) -> LocalUser | None:
    """Return the user of a request; None if nobody is logged in."""
    # Few requests have the cookie.
    if COOKIE not in environ.get("HTTP_COOKIE", ""):
        return None
    email, _, rest = (webob.Request(environ).cookies.get(COOKIE) or "").partition(":")
    if not _EMAIL.fullmatch(email):
        return None
    return LocalUser(email=email, is_admin=rest.partition(":")[0] == "True")


def announce(environ: WSGIEnvironment, user: LocalUser | None) -> None:
    """Set the headers by which the app knows the user."""
    if user is None:
        return
    environ[_HEADERS["User-Email"]] = user.email
    environ[_HEADERS["User-Id"]] = user.user_id
    environ[_HEADERS["User-Is-Admin"]] = "1" if user.is_admin else "0"
    environ[_NICKNAME] = user.email.removesuffix("@gmail.com")
    environ[_DOMAIN] = "gmail.com"


def login_url(request: webob.Request) -> str:
    """Return the URL of the page, from which the person returns to this request's URL."""
    target = "/"
    if request.method in ("GET", "HEAD"):
        # The characters of the path stand for bytes (PEP 3333), which need not be UTF-8.
        target = urllib.parse.quote(request.environ.get("PATH_INFO", "").encode("latin-1"))
        target += f"?{request.query_string}" if request.query_string else ""
    return f"{LOGIN_PATH}?{urllib.parse.urlencode({'continue': target})}"


def page(request: webob.Request) -> webob.Response:
    """Answer a request of the page: show the form, log in or log out."""
    # A form of another page, or a link, may log a person in or out. That is harmless where nobody proves anything.
    fields = _fields(request)
    action = fields.get("action", "").lower()
    target = _own_target(fields.get("continue", ""))
    user = user_of(request.environ)
    if action == "logout":
        response = _redirect(target)
        response.delete_cookie(COOKIE, path="/")
        return response
    problem = ""
    email = fields.get("email", user.email if user else "test@example.com").strip()
    is_admin = "admin" in fields if action else bool(user and user.is_admin)
    if action == "login" and request.method == "POST":
        if _EMAIL.fullmatch(email):
            chosen = LocalUser(email=email, is_admin=is_admin)
            response = _redirect(target)
            value = f"{chosen.email}:{chosen.is_admin}:{chosen.user_id}"
            response.set_cookie(COOKIE, value, path="/", httponly=True, samesite="Lax")
            return response
        problem = '<p class="problem">That is no e-mail address.</p>'
    text = _PAGE.format(
        title=f"Logged in as {html.escape(user.email)}" if user else "Not logged in",
        path=LOGIN_PATH,
        problem=problem,
        email=html.escape(email),
        checked=" checked" if is_admin else "",
        target=html.escape(target),
    )
    return webob.Response(status=400 if problem else 200, text=text, cache_control="no-store")


def _fields(request: webob.Request) -> dict[str, str]:
    """Return the fields of the form, or of the URL; a body that is no form has none."""
    text = request.query_string
    if request.method == "POST":
        text = request.body_file.read(_MAX_FORM_BYTES).decode("utf-8", "replace")
    return dict(urllib.parse.parse_qsl(text[:_MAX_FORM_BYTES], keep_blank_values=True))


def _redirect(target: str) -> webob.Response:
    response = webob.Response(status=302, content_type="text/plain", text="", cache_control="no-store")
    response.location = target
    return response


def _own_target(url: str) -> str:
    """Return the path and the query of a URL, on whatever host: the browser stays where its cookie is."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "/"
    path = "/" + urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~").lstrip("/")
    query = urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    return f"{path}?{query}" if query else path

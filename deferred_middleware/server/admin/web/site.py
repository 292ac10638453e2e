"""Serves the pages: finds the page of a request, lets it answer, and protects the answer.

Every page has a Content-Security-Policy with a nonce of its own: only the server's own script and style are used, and
nothing is requested from another host. Every form is posted with a token that only this server's pages have. The
:class:`~deferred_middleware.server.admin.guard.Guard` has checked the headers before.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.server_file import data_dir_option
from deferred_middleware.server.admin.web.rendering import STATIC_PREFIX, Renderer
from deferred_middleware.server.admin.web.requests import FORM_TOKEN, Answer, PageRequest, Redirected, Sent, Shown
from deferred_middleware.server.admin.web.routes import MenuEntry, Route, find_route
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.visitors import Visitors

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

_NOTICE_COOKIE = "deferred_notice"
_SESSION_COOKIE = "deferred_session"
_SIGN_IN = "/sign-in"
_MAX_NOTICE_CHARACTERS = 1000

logger: Final = logging.getLogger(__name__)

_Headers = list[tuple[str, str]]


class Site:
    """A WSGI app that answers ``visitors`` with the pages of ``routes``.

    ``menu`` is on every page. Forms are posted with ``form_token``, a secret that stays the same when the server starts
    again, so that a page that was loaded before can still be used.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        menu: Sequence[MenuEntry],
        tools: PageTools,
        visitors: Visitors,
        form_token: str,
    ) -> None:
        self._routes = routes
        self._menu = menu
        self._tools = tools
        self._renderer = Renderer()
        self._visitors = visitors
        self._form_token = form_token
        self._data_dir_option = data_dir_option(Path(str(tools.operations.about["data_dir"])))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request with a page."""
        request = PageRequest(environ, form_token=self._form_token, nonce=secrets.token_urlsafe(16))
        if request.path.startswith(STATIC_PREFIX) and request.path in self._renderer.static:
            answer: Answer = self._static(request.path)
        elif not self._visitors.may_see(environ, request.cookie(_SESSION_COOKIE)):
            answer = self._sign_in(request)
        else:
            answer = self._answer(request)
        status, headers, body = self._respond(request, answer)
        if isinstance(body, bytes):
            headers.append(("Content-Length", str(len(body))))
        start_response(f"{status.value} {status.phrase}", headers)
        if request.method == "HEAD":
            return []
        return [body] if isinstance(body, bytes) else body

    def _answer(self, request: PageRequest) -> Answer:
        try:
            route, parts = find_route(self._routes, request.method, request.path)
            if route.method == "POST":
                # Before anything else: this raises an error unless the form has the token.
                _ = request.form
            answer: Answer = route.answer(self._tools, request, **parts)
        except OperationError as error:
            return self._problem(error.status, error.message, known=error.known)
        except (sqlite3.Error, ServerError) as error:
            logger.exception("The task store failed.")
            return self._problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"The task store failed: {error}.")
        except Exception:  # a person must not get a traceback; the terminal has it
            logger.exception("The page %s could not be made.", request.path)
            message = "This page could not be made, because of a mistake in the server. Its terminal shows the details."
            return self._problem(HTTPStatus.INTERNAL_SERVER_ERROR, message)
        return answer

    def _sign_in(self, request: PageRequest) -> Answer:
        """Let a person sign in with the token of this run, by the form or by a link that has it."""
        wrong = False
        try:
            if request.path == _SIGN_IN:
                shown = request.field("token") if request.method == "POST" else request.given("token")
                if self._visitors.is_token(shown):
                    return Redirected(to="/", headers=(_cookie(_SESSION_COOKIE, self._visitors.session, None),))
                wrong = bool(shown)
        except OperationError as error:
            return self._problem(error.status, error.message)
        return Shown(template="sign_in.html", values={"wrong": wrong}, status=HTTPStatus.UNAUTHORIZED)

    def _problem(self, status: HTTPStatus, message: str, known: Sequence[str] = ()) -> Shown:
        return Shown(
            template="problem.html", values={"message": message, "known": known, "code": status}, status=status
        )

    def _static(self, path: str) -> Sent:
        file = self._renderer.static[path]
        kept = ("Cache-Control", "private, max-age=31536000, immutable")
        return Sent(content_type=file.content_type, body=file.content, headers=(kept,))

    def _respond(self, request: PageRequest, answer: Answer) -> tuple[HTTPStatus, _Headers, bytes | Iterable[bytes]]:
        if isinstance(answer, Redirected):
            headers: _Headers = [("Location", answer.to), ("Content-Type", "text/plain"), ("Cache-Control", "no-store")]
            headers += answer.headers
            if answer.notice:
                text = quote(answer.notice[:_MAX_NOTICE_CHARACTERS], safe=" ", errors="replace")
                headers.append(_cookie(_NOTICE_COOKIE, text.replace(" ", "+"), 60))
            return HTTPStatus.SEE_OTHER, headers, b""
        if isinstance(answer, Sent):
            headers = [("Content-Type", answer.content_type), *answer.headers]
            if not answer.headers:
                headers.append(("Cache-Control", "no-store"))
            return HTTPStatus.OK, headers, answer.body if answer.stream is None else answer.stream()
        notice = unquote(request.cookie(_NOTICE_COOKIE).replace("+", " "), errors="replace")
        body = self._renderer.render(answer.template, {**self._frame(request, notice), **answer.values})
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Security-Policy", _policy(request.nonce)),
            ("Cache-Control", "no-store"),
        ]
        if notice:
            headers.append(_cookie(_NOTICE_COOKIE, "", 0))
        return answer.status, headers, body

    def _frame(self, request: PageRequest, notice: str) -> dict[str, Any]:
        """Return the values that every page has."""
        operations = self._tools.operations
        return {
            "request": request,
            "menu": self._menu,
            "notice": notice,
            "form_token_name": FORM_TOKEN,
            "read_only": operations.read_only,
            "about": operations.about,
            "data_dir_option": self._data_dir_option,
        }


def _policy(nonce: str) -> str:
    """Return the policy: our own script and style, and requests to this server only."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _cookie(name: str, value: str, seconds: int | None) -> tuple[str, str]:
    """Return a header that sets a cookie, for some seconds or until the browser ends."""
    age = "" if seconds is None else f"; Max-Age={seconds}"
    return "Set-Cookie", f"{name}={value}{age}; Path=/; HttpOnly; SameSite=Strict"

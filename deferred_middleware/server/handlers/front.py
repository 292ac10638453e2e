"""The WSGI app in front of an app, which does what the handlers of ``app.yaml`` say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import webob

from deferred_middleware.server.config.handlers import HandlerRule
from deferred_middleware.server.handlers import login, static_files
from deferred_middleware.wire.protocol import LOCAL_SERVER_ENVIRON_KEY, LOGIN_PATH

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class HandlersApp:
    """Answers the login page and static files, keeps out who is not logged in, and lets ``app`` answer the rest.

    The first of the ``rules`` that matches a path decides. The task queue's requests are an administrator's, so they
    pass all logins; they reach the app whatever the rules say. This app has to be inside of
    :class:`~deferred_middleware.server.delivery.frontend.Frontend`, which marks those requests, and removes the headers
    that this app sets.
    """

    def __init__(self, app: WSGIApplication, rules: Sequence[HandlerRule] = ()) -> None:
        self._app = app
        self._rules = [(re.compile(rule.pattern), rule) for rule in rules]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer the request, or let the app answer it."""
        if environ.get(LOCAL_SERVER_ENVIRON_KEY):
            return self._app(environ, start_response)
        if environ.get("PATH_INFO") == LOGIN_PATH:
            return login.page(webob.Request(environ))(environ, start_response)
        user = login.user_of(environ)
        login.announce(environ, user)
        if self._rules:
            found = self._match(environ.get("PATH_INFO", ""))
            if found is not None:
                rule, match = found
                request = webob.Request(environ)
                refusal = _refusal(rule, user, request)
                if refusal is not None:
                    return refusal(environ, start_response)
                if rule.file is not None:
                    return static_files.response_for(rule, match, request)(environ, start_response)
        return self._app(environ, start_response)

    def _match(self, path: str) -> tuple[HandlerRule, re.Match[str]] | None:
        """Return the first rule for a path, whose characters stand for bytes (PEP 3333), and the match."""
        text = path.encode("latin-1").decode("utf-8", "surrogateescape")
        for pattern, rule in self._rules:
            match = pattern.fullmatch(text)
            if match is not None:
                return rule, match
        return None


def _refusal(rule: HandlerRule, user: login.LocalUser | None, request: webob.Request) -> webob.Response | None:
    """Return the response to a request that the rule's login keeps out; None if it may pass."""
    if rule.login not in ("required", "admin"):
        return None
    if user is None:
        if rule.auth_fail_action == "unauthorized":
            return _plain(401, "Log in to see this page.")
        return webob.Response(status=302, location=login.login_url(request), content_type="text/plain", text="")
    if rule.login == "admin" and not user.is_admin:
        return _plain(401, f"{user.email} is not an administrator. Log in as one at {LOGIN_PATH}.")
    return None


def _plain(status: int, text: str) -> webob.Response:
    return webob.Response(status=status, text=f"{text}\n", content_type="text/plain")

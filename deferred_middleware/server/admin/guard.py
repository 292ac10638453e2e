"""Who may speak to the queue process: not a page of somebody else's in the person's own browser.

The server listens on loopback, but a browser on this machine reaches it too, on behalf of any page that it shows.
Such a request betrays itself by its headers, which the page can't choose:

* ``Host`` is the name that the page was loaded from, also when that name now leads here (DNS rebinding), so it is
  compared with a list of names;
* ``Origin`` and ``Sec-Fetch-Site`` say that another site asks. Another port of this machine is another site here: an
  app that is served on one has no business with its queue but by its SDK.

What changes something takes POST, and shows the token of this run besides (:func:`shows_token`).
Source: https://fetch.spec.whatwg.org/#origin-header and https://www.w3.org/TR/fetch-metadata/ .
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from deferred_middleware.wire.protocol import ADMIN_TOKEN_HEADER, environ_key

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?P<port>:[0-9]{1,5})?")
_OWN_SITE = ("same-origin", "none")
_SAFE_METHODS = ("GET", "HEAD")
_TOKEN_KEY = environ_key(ADMIN_TOKEN_HEADER)
# Nothing that is served here belongs in anybody else's page, or is to be guessed at.
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Referrer-Policy", "same-origin"),
)

_logger = logging.getLogger(__name__)


def admin_names(host: str, allowed: Collection[str]) -> set[str]:
    """Return the names of a server that listens on ``host``, with those that the person has ``allowed`` besides."""
    # Of "any address" no name follows, and browsers take it for loopback.
    own = [] if host == "0.0.0.0" else [host]
    return {*LOOPBACK_NAMES, *own, *allowed}


def shows_token(environ: WSGIEnvironment, token: str) -> bool:
    """Tell whether a request shows the token of this run."""
    return hmac.compare_digest(environ.get(_TOKEN_KEY, "").encode("latin-1"), token.encode())


class Guard:
    """A WSGI app that passes on to ``app`` only requests that no other site's page can have made.

    ``names`` are the hosts, without port, by which the server may be called. The port doesn't matter: a tunnel or a
    container may have given it another one, and a page from another port is told by its origin.
    """

    def __init__(self, app: WSGIApplication, *, names: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Let the app answer, or refuse with 403."""
        reason = self._refusal(environ)
        if reason is not None:
            _logger.warning(
                "Refused %s %r from %s: %s.",
                environ["REQUEST_METHOD"],
                environ.get("PATH_INFO", ""),
                environ.get("REMOTE_ADDR"),
                reason,
            )
            body = f"Refused: {reason}.\n".encode()
            headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), *_HEADERS]
            start_response("403 Forbidden", headers)
            return [body]

        def start(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> object:
            known = {name.lower() for name, _value in headers}
            more = [(name, value) for name, value in _HEADERS if name.lower() not in known]
            return start_response(status, [*headers, *more], exc_info)  # type: ignore[arg-type] # passed on as it came

        return self._app(environ, start)  # type: ignore[arg-type] # a start_response as PEP 3333 has it

    def _refusal(self, environ: WSGIEnvironment) -> str | None:
        host = environ.get("HTTP_HOST", "")
        found = _HOST.fullmatch(host)
        if found is None or found["name"].lower() not in self._names:
            # What isn't a host's name is not repeated.
            shown = f"the Host header names {found['name']!r}" if found else "its Host header names no host"
            return f"{shown}, which is none of this server's names; --allow-host NAME adds one"
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return "another site's page asks (Origin)"
        site = environ.get("HTTP_SEC_FETCH_SITE")
        if site is not None and site.lower() not in _OWN_SITE:
            return "another site's page asks (Sec-Fetch-Site)"
        if site is not None and site.lower() == "none" and environ["REQUEST_METHOD"] not in _SAFE_METHODS:
            return "a page is needed to change something (Sec-Fetch-Site)"
        return None

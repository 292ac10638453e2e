"""Protects the queue process from web pages of other sites.

The server listens on loopback, but a browser on this machine can reach it too, on behalf of any page that it shows. The
page can't choose these headers of its requests, so :class:`Guard` checks them:

* ``Host`` is the name that the page was loaded from, even if that name now leads to this machine (DNS rebinding). The
  guard compares it with a list of names.
* ``Origin`` and ``Sec-Fetch-Site`` tell that another site makes the request. Another port of this machine is another
  site: an app on another port may use the queue only through its SDK.

A request that changes something must also be a POST and show the token of this run (:func:`shows_token`).
Source: https://fetch.spec.whatwg.org/#origin-header and https://www.w3.org/TR/fetch-metadata/ .
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Final

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.wire.protocol import ADMIN_TOKEN_HEADER, environ_key

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")

_HOST = re.compile(r"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?P<port>:[0-9]{1,5})?")
_OWN_SITE = ("same-origin", "none")
_SAFE_METHODS = ("GET", "HEAD")
_TOKEN_KEY = environ_key(ADMIN_TOKEN_HEADER)
# No other site may embed the answers, and browsers must not guess their type.
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Referrer-Policy", "same-origin"),
)

logger: Final = get_logger(__name__)


def admin_names(host: str, allowed: Collection[str]) -> set[str]:
    """Return the legal names in the ``Host`` header of a server that listens on ``host``, with the ``allowed`` ones."""
    # This means any address, so it is not a name; browsers take it for loopback.
    own = [] if host == "0.0.0.0" else [host]
    return {*LOOPBACK_NAMES, *own, *allowed}


def shows_token(environ: WSGIEnvironment, token: str) -> bool:
    """Tell whether a request shows the token of this run."""
    return hmac.compare_digest(environ.get(_TOKEN_KEY, "").encode("latin-1"), token.encode())


class Guard:
    """A WSGI app that passes a request to ``app`` only if no other site's page can have made it.

    ``names`` are the legal hosts in the ``Host`` header, without the port. The port is not checked: a tunnel or a
    container may change it, and a page from another port has another origin.
    """

    def __init__(self, app: WSGIApplication, *, names: Collection[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Pass the request to the app, or refuse it with 403."""
        reason = self._reason_to_refuse(environ)
        if reason is not None:
            logger.warning(
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
            return start_response(status, [*headers, *more], exc_info)  # type: ignore[arg-type] # passed on unchanged

        return self._app(environ, start)  # type: ignore[arg-type] # a start_response as PEP 3333 has it

    def _reason_to_refuse(self, environ: WSGIEnvironment) -> str | None:
        host = environ.get("HTTP_HOST", "")
        found = _HOST.fullmatch(host)
        if found is None or found["name"].lower() not in self._names:
            # The message repeats the header only if it is a host name.
            problem = f"the Host header names {found['name']!r}" if found else "the Host header names no host"
            return f"{problem}, which is not a name of this server; --allow-host NAME adds one"
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return "the request is from another site's page (Origin)"
        site = environ.get("HTTP_SEC_FETCH_SITE")
        if site is not None and site.lower() not in _OWN_SITE:
            return "the request is from another site's page (Sec-Fetch-Site)"
        if site is not None and site.lower() == "none" and environ["REQUEST_METHOD"] not in _SAFE_METHODS:
            return "a request that changes something must come from a page (Sec-Fetch-Site)"
        return None

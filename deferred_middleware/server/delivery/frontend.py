"""A small version of App Engine's front end, between the network and the app in an app process.

On App Engine, outside clients can't send an ``X-AppEngine-*`` header, and every request that reaches the app has the
headers that the platform sets. :class:`Frontend` does both, so that the unmodified ``wrap_wsgi_app`` and an app's own
checks for the task queue work in the same way:

    frontend = Frontend(app, delivery_token=…, api_ticket=…, default_hostname="127.0.0.1:8080")
    waitress.create_server(frontend)

What the queue process delivers comes over a channel of its own, and takes another way in: :meth:`Frontend.deliver`. A
request of any other client can't take it. Requests that the queue process sends over HTTP, those of cron jobs, have a
token that only the two processes know.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from waitress.task import hop_by_hop

from deferred_middleware.wire.protocol import (
    API_TICKET_HEADER,
    DEFAULT_VERSION_HOSTNAME_HEADER,
    HTTPS_HEADER,
    LOCAL_SERVER_ENVIRON_KEY,
    REQUEST_LOG_ID_HEADER,
    SERVER_TOKEN_HEADER,
    TASK_QUEUE_IP,
    USER_IP_HEADER,
    environ_key,
)

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PLATFORM_PREFIX = "HTTP_X_APPENGINE_"
_SERVER_TOKEN_KEY = environ_key(SERVER_TOKEN_HEADER)
_API_TICKET_KEY = environ_key(API_TICKET_HEADER)
_HOSTNAME_KEY = environ_key(DEFAULT_VERSION_HOSTNAME_HEADER)
_LOG_ID_KEY = environ_key(REQUEST_LOG_ID_HEADER)
_USER_IP_KEY = environ_key(USER_IP_HEADER)
_HTTPS_KEY = environ_key(HTTPS_HEADER)


class Frontend:
    """A WSGI app that corrects a request's platform headers and passes the request on to ``app``.

    The SDK sends ``api_ticket`` with each API call. The app sees ``default_hostname`` as ``DEFAULT_VERSION_HOSTNAME``;
    without it, the SDK silently drops a task's target.
    """

    def __init__(self, app: WSGIApplication, *, delivery_token: str, api_ticket: str, default_hostname: str) -> None:
        self._app = app
        self._delivery_token = delivery_token.encode()
        self._api_ticket = api_ticket
        self._default_hostname = default_hostname

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Clean a client's request, add the platform's headers, let the app answer, and clean its headers."""
        token = environ.pop(_SERVER_TOKEN_KEY, "").encode("latin-1")
        if hmac.compare_digest(token, self._delivery_token):
            environ.setdefault(_USER_IP_KEY, TASK_QUEUE_IP)
            environ[LOCAL_SERVER_ENVIRON_KEY] = True
        else:
            # Servers differ in which spellings of a header they map to the same key, so compare the normalized form.
            for key in [key for key in environ if _is_platform_key(key)]:
                del environ[key]
            # The SDK copies this header into REMOTE_ADDR (runtime/middlewares.py).
            environ[_USER_IP_KEY] = environ.get("REMOTE_ADDR", "")
        self._add_headers(environ)

        def start(
            status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
        ) -> Callable[[bytes], object]:
            if exc_info is None:
                return start_response(status, without_hop_by_hop(headers))
            return start_response(status, without_hop_by_hop(headers), exc_info)

        return self._app(environ, start)

    def deliver(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Let the app answer a delivery of the queue process, whose headers are the platform's own."""
        environ[LOCAL_SERVER_ENVIRON_KEY] = True
        self._add_headers(environ)
        return self._app(environ, start_response)

    def _add_headers(self, environ: WSGIEnvironment) -> None:
        environ[_API_TICKET_KEY] = self._api_ticket
        environ[_HOSTNAME_KEY] = self._default_hostname
        # Not from the module random, whose numbers the app may have seeded.
        environ[_LOG_ID_KEY] = os.urandom(16).hex()
        environ[_HTTPS_KEY] = "off"


def without_hop_by_hop(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the headers that an app may set; gunicorn leaves the others out too.

    A hop-by-hop header, such as ``Connection``, is about one connection. An app that passes on the response of another
    server passes that server's on, and WSGI servers reject them (PEP 3333).
    """
    if any(name.lower() in hop_by_hop for name, _value in headers):
        return [(name, value) for name, value in headers if name.lower() not in hop_by_hop]
    return headers


def _is_platform_key(key: str) -> bool:
    return key.upper().replace("-", "_").startswith(_PLATFORM_PREFIX)

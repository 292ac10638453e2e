"""The host that a captured task is delivered to: that of the request that deferred it.

A site accepts this host, or it would have refused the request. Other hosts may be refused, by Django's
``ALLOWED_HOSTS`` or werkzeug's ``TRUSTED_HOSTS``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any


def default_host() -> str:
    """Return the host that the framework's own test client sends."""
    conf = sys.modules.get("django.conf")
    # Django's test runner allows this one (https://docs.djangoproject.com/en/stable/topics/testing/advanced/).
    return "testserver" if conf is not None and conf.settings.configured else "localhost"


class HostOfRequests:
    """Notices the host of the last request that the test has made. Django tells by a signal, Flask when it is asked."""

    def __init__(self) -> None:
        self._last: str | None = None

    def current(self) -> str:
        """Return the host of the current request, or else of the last one, or else :func:`default_host`."""
        flask: Any = sys.modules.get("flask")
        if flask is not None and flask.has_request_context():
            self._last = _host_in(flask.request.environ)
        return self._last or default_host()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Notice the requests of Django that begin in the block."""
        signals: Any = sys.modules.get("django.core.signals")
        if signals is None:
            yield
            return
        signals.request_started.connect(self._started)
        try:
            yield
        finally:
            signals.request_started.disconnect(self._started)

    def _started(self, sender: object, environ: Mapping[str, Any] | None = None, **kwargs: object) -> None:
        if environ is not None:
            self._last = _host_in(environ)


def _host_in(environ: Mapping[str, Any]) -> str:
    host = environ.get("HTTP_HOST")
    if not host:
        host, port = environ["SERVER_NAME"], environ.get("SERVER_PORT", "80")
        return str(host) if port in ("80", "443") else f"{host}:{port}"
    return str(host)

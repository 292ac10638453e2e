"""Tell whether the task queue sent a request.

App Engine standard sets ``X-AppEngine-QueueName`` and ``X-AppEngine-TaskName`` on a task's request, and takes headers
of these names from everybody else's
(https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers); Cloud Tasks' requests to App
Engine carry the same ones. There the headers are believed, and a signature is checked where there is one. Anywhere else
they prove nothing, and only a signature does.

``REMOTE_ADDR`` and ``SERVER_SOFTWARE`` are never evidence: the SDK's own middleware copies client headers into the
first (SDK: ``runtime/middlewares.py``, WsgiEnvSettingMiddleware).

WSGI can't tell ``X-AppEngine-TaskName`` from ``X_AppEngine_TaskName``, which App Engine doesn't take from anybody and
some servers fold into the same key. Where both were sent servers join the values with a comma, and no value that is
believed here has one. That includes the user's IP, which the platform spells exactly on each request from outside.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from deferred_middleware import protocol, signing
from deferred_middleware.errors import SecretKeyMissingError, UntrustedRequestError

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from deferred_middleware.settings import Deployment, Settings

_NAME: Final = protocol.environ_key(protocol.TASK_NAME_HEADER)
_QUEUE: Final = protocol.environ_key(protocol.QUEUE_NAME_HEADER)
_USER_IP: Final = protocol.environ_key(protocol.USER_IP_HEADER)
_SIGNATURE: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)


class Gate:
    """Lets in what the task queue sent.

    Raises :class:`SecretKeyMissingError` where without a key anybody could get in.
    """

    def __init__(self, settings: Settings, deployment: Deployment, *, clock: Callable[[], float] = time.time) -> None:
        self._keyring = signing.keyring_for(settings.secret_keys, deployment.application)
        self._signature_required = settings.require_signature or not deployment.on_app_engine_standard
        self._clock = clock
        if self._signature_required and not self._keyring:
            raise SecretKeyMissingError(on_app_engine_standard=deployment.on_app_engine_standard)

    def admit(self, environ: WSGIEnvironment) -> str | None:
        """Return the hash that the request's body has to have, or None where a request without a signature will do.

        The body is not touched. Raises :class:`UntrustedRequestError`.
        """
        name, queue = environ.get(_NAME), environ.get(_QUEUE)
        if not name or "," in name:
            raise UntrustedRequestError("task-name", f"it has not exactly one {protocol.TASK_NAME_HEADER} header")
        if not queue or "," in queue:
            raise UntrustedRequestError("queue-name", f"it has not exactly one {protocol.QUEUE_NAME_HEADER} header")
        if environ.get(_USER_IP, protocol.TASK_QUEUE_IP) != protocol.TASK_QUEUE_IP:
            raise UntrustedRequestError("user-ip", f"its {protocol.USER_IP_HEADER} header is not the task queue's")
        signature = environ.get(_SIGNATURE)
        if signature is None:
            if self._signature_required:
                raise UntrustedRequestError("signature-missing", "it is not signed")
            return None
        if not self._keyring:
            # Only on App Engine standard: another version of the app has a key already, and signs.
            return None
        try:
            path = (environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"]).encode("latin-1")
        except UnicodeEncodeError:
            raise UntrustedRequestError("path", "its path is not as WSGI has it") from None
        return self._keyring.verify(
            signature,
            method=environ["REQUEST_METHOD"],
            path=path,
            query=environ.get("QUERY_STRING", ""),
            queue=queue,
            name=name,
            environ=environ,
            now=self._clock(),
        )


def check_body(body: bytes, digest: str) -> None:
    """Raise :class:`UntrustedRequestError` unless ``body`` is what was signed."""
    if not hmac.compare_digest(signing.digest_of(body), digest):
        raise UntrustedRequestError("body", "its body is not the one that was signed")

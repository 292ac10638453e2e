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

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from deferred_middleware.errors import SecretKeyMissingError, UntrustedRequestError
from deferred_middleware.execution.body import read
from deferred_middleware.wire import protocol
from deferred_middleware.wire import signature as signing

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from deferred_middleware.config.settings import Deployment, Settings

_NAME: Final = protocol.environ_key(protocol.TASK_NAME_HEADER)
_QUEUE: Final = protocol.environ_key(protocol.QUEUE_NAME_HEADER)
_USER_IP: Final = protocol.environ_key(protocol.USER_IP_HEADER)
_TASK_QUEUE_IP: Final = protocol.TASK_QUEUE_IP
_SIGNATURE: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)


class Gate:
    """Lets in what the task queue sent.

    Raises :class:`SecretKeyMissingError` where without a key anybody could get in.
    """

    def __init__(self, settings: Settings, deployment: Deployment, *, clock: Callable[[], float] = time.time) -> None:
        keyring = signing.keyring_for(settings.secret_keys, deployment.application)
        self._verify = keyring.verify if keyring else None
        self._signature_required = settings.require_signature or not deployment.on_app_engine_standard
        self._max_bytes = settings.max_payload_bytes
        self._clock = clock
        if self._signature_required and not keyring:
            raise SecretKeyMissingError(on_app_engine_standard=deployment.on_app_engine_standard)

    def body_of(self, environ: WSGIEnvironment) -> bytes:
        """Return the body of a request that the task queue sent; that of another is not read.

        Raises :class:`UntrustedRequestError`, and :class:`BodyError` with the status to answer with.
        """
        name, queue = environ.get(_NAME), environ.get(_QUEUE)
        if not name or "," in name:
            raise UntrustedRequestError("task-name", f"it has not exactly one {protocol.TASK_NAME_HEADER} header")
        if not queue or "," in queue:
            raise UntrustedRequestError("queue-name", f"it has not exactly one {protocol.QUEUE_NAME_HEADER} header")
        if environ.get(_USER_IP, _TASK_QUEUE_IP) != _TASK_QUEUE_IP:
            raise UntrustedRequestError("user-ip", f"its {protocol.USER_IP_HEADER} header is not the task queue's")
        signature = environ.get(_SIGNATURE)
        if signature is None and self._signature_required:
            raise UntrustedRequestError("signature-missing", "it is not signed")
        if signature is None or self._verify is None:
            # There may be one and no key only on App Engine standard: another version of the app has one, and signs.
            return read(environ, self._max_bytes)
        digest = self._verify(signature, environ, queue, name, self._clock())
        body = read(environ, self._max_bytes)
        if not hmac.compare_digest(hashlib.sha256(body).hexdigest(), digest):
            raise UntrustedRequestError("body", "its body is not the one that was signed")
        return body

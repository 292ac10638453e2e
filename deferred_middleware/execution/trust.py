"""Read the body of a task's request, as far as it is said to go and never further than is allowed.

WSGI tells the length in ``CONTENT_LENGTH``. Where there is none, as with ``Transfer-Encoding: chunked``, the end is
known only if the server sets ``wsgi.input_terminated``, by which it says that its stream ends with the body
(https://wsgi.readthedocs.io/en/latest/proposals-2.0.html; gunicorn, waitress and werkzeug do). A header that was sent
twice is handed on with both values and a comma between, and so is no number.

Tell whether the task queue sent a request.

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
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from deferred_middleware.errors import BodyError, SecretKeyMissingError, UntrustedRequestError
from deferred_middleware.wire import protocol
from deferred_middleware.wire import signature as signing

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, WSGIEnvironment

    from deferred_middleware.config.settings import Deployment, Settings

logger = logging.getLogger("deferred_middleware")

_PIECE_BYTES: Final = 65_536


def read(environ: WSGIEnvironment, limit_bytes: int) -> bytes:
    """Return the body of a request; never read more than a byte over ``limit_bytes``.

    Raises :class:`BodyError`, with the status to answer with: 400, 411 or 413.
    """
    announced = environ.get("CONTENT_LENGTH")
    if announced:
        if not (announced.isascii() and announced.isdigit()):
            raise BodyError(400, "its Content-Length is no number")
        length = int(announced[:20])  # enough digits to be too large; int() itself refuses thousands of them
        if length > limit_bytes:
            raise BodyError(413, "its body is too large")
    elif environ.get("wsgi.input_terminated"):
        length = limit_bytes + 1
    else:
        raise BodyError(411, "its body has no Content-Length")
    stream = environ["wsgi.input"]
    try:
        body: bytes = stream.read(length)
        if len(body) != length:
            body = _gathered(body, stream, length)
    except Exception as error:
        # Servers report a broken connection or malformed chunks with exceptions of their own, not with OSError alone.
        logger.warning("the connection broke off in the middle of a task's body", exc_info=True)
        raise BodyError(400, "its body could not be read") from error
    if announced and len(body) < length:
        raise BodyError(400, "its body was cut off")
    if len(body) > limit_bytes:
        raise BodyError(413, "its body is too large")
    return body


def _gathered(body: bytes, stream: InputStream, length: int) -> bytes:
    """Return ``body`` and what follows it in the stream: ``length`` bytes in all, or fewer if it ends earlier."""
    gathered = bytearray(body)
    # A stream may give less at a time than it has.
    while body and len(gathered) < length:
        body = stream.read(min(length - len(gathered), _PIECE_BYTES))
        gathered += body
    return bytes(gathered)


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

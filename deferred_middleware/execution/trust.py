"""Check that the task queue sent a request, and read the request's body.

A task has the headers ``X-AppEngine-*``, or ``X-CloudTasks-*`` if Cloud Tasks delivers it to a URL. Nobody removes the
latter from the requests of strangers. Such a task needs a signature; or, if the process has no secret key and names a
service account, that account's token (:mod:`.oidc`).

App Engine standard sets ``X-AppEngine-QueueName`` and ``X-AppEngine-TaskName`` on the request of a task, and removes
these headers from all other requests
(https://cloud.google.com/appengine/docs/standard/services/task-queue/creating-handlers). Requests from Cloud Tasks to
App Engine have the same headers. On App Engine standard, the headers are therefore trusted, and a signature is checked
if there is one. Elsewhere anybody can send these headers, and only a signature is trusted.

``REMOTE_ADDR`` proves nothing: the SDK's own middleware copies headers of the client into it (SDK:
``runtime/middlewares.py``, WsgiEnvSettingMiddleware).

WSGI can't distinguish ``X-AppEngine-TaskName`` from ``X_AppEngine_TaskName``. App Engine does not remove the latter,
and some servers give both the same key. Of these, some join the values with a comma if both were sent, so a value with
a comma is never trusted. That includes the user's IP, which the platform sets under its exact name on every request
from outside. Others keep only the value that came last, so a stranger can replace the user's IP (cheroot, Granian,
Tornado, Twisted). Nothing in a request reveals that. So headers are trusted only from the servers that are known to
drop underscores or to join values. A server names itself in ``SERVER_SOFTWARE``, which no header can set.

WSGI gives the length of the body in ``CONTENT_LENGTH``. Without it, as with ``Transfer-Encoding: chunked``, the end of
the body is known only if the server sets ``wsgi.input_terminated``, which says that the stream ends with the body
(https://wsgi.readthedocs.io/en/latest/proposals-2.0.html; gunicorn, waitress and werkzeug set it).
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Final

from deferred_middleware.config.process import keyring_of
from deferred_middleware.errors import BodyError, SecretKeyMissingError, UntrustedRequestError
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed.wsgi import InputStream, WSGIEnvironment

    from deferred_middleware.config.process import Deployment
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.execution.oidc import TokenVerifier

logger: Final = get_logger("deferred_middleware")

_NAME: Final = protocol.environ_key(protocol.TASK_NAME_HEADER)
_QUEUE: Final = protocol.environ_key(protocol.QUEUE_NAME_HEADER)
_USER_IP: Final = protocol.environ_key(protocol.USER_IP_HEADER)
_TASK_QUEUE_IP: Final = protocol.TASK_QUEUE_IP
_SIGNATURE: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)
_CLOUD_TASKS_NAME: Final = protocol.environ_key(protocol.CLOUD_TASKS_TASK_NAME_HEADER)
_CLOUD_TASKS_QUEUE: Final = protocol.environ_key(protocol.CLOUD_TASKS_QUEUE_NAME_HEADER)
_CHUNK_BYTES: Final = 65_536
_CAREFUL_SERVERS: Final = ("gunicorn", "waitress", "Werkzeug/", "WSGIServer/", "Apache", "deferred-middleware")
"""How ``SERVER_SOFTWARE`` begins of servers that never let one spelling of a header replace another one: mod_wsgi is
Apache, and ``WSGIServer`` is the standard library's, also in Django's ``runserver``."""


class Authenticator:
    """Reads the bodies of requests that the task queue sent, and refuses all other requests.

    Raises :class:`SecretKeyMissingError` if there is no key although anybody could send requests to this process.
    """

    def __init__(self, settings: Settings, deployment: Deployment, *, clock: Callable[[], float] | None = None) -> None:
        keyring = keyring_of(settings, deployment)
        self._verify = keyring.verify if keyring else None
        self._signature_required = settings.require_signature or not deployment.on_app_engine_standard
        self._max_bytes = settings.max_payload_bytes
        self._clock = clock
        self._tokens = None if keyring else _token_verifier(settings, deployment)
        if self._signature_required and not keyring and (self._tokens is None or settings.require_signature):
            raise SecretKeyMissingError(on_app_engine_standard=deployment.on_app_engine_standard)

    def body_of(self, environ: WSGIEnvironment) -> bytes:
        """Return the body of a request that the task queue sent. The body of any other request is not read.

        Raises :class:`UntrustedRequestError`, or :class:`BodyError` with the HTTP status of the response.
        """
        name, queue = environ.get(_NAME), environ.get(_QUEUE)
        if not name or "," in name:
            if name is not None or _CLOUD_TASKS_NAME not in environ:
                raise UntrustedRequestError(
                    "task-name", f"it does not have exactly one {protocol.TASK_NAME_HEADER} header"
                )
            name, queue = _names_by_url(environ)
            if self._verify is None:
                return self._body_with_token(environ)
            if environ.get(_SIGNATURE) is None:
                raise UntrustedRequestError("signature-missing", "it has no signature")
        if not queue or "," in queue:
            raise UntrustedRequestError(
                "queue-name", f"it does not have exactly one {protocol.QUEUE_NAME_HEADER} header"
            )
        if environ.get(_USER_IP, _TASK_QUEUE_IP) != _TASK_QUEUE_IP:
            raise UntrustedRequestError(
                "user-ip", f"its {protocol.USER_IP_HEADER} header is not that of the task queue"
            )
        signature = environ.get(_SIGNATURE)
        if signature is None and self._signature_required:
            raise UntrustedRequestError("signature-missing", "it has no signature")
        if signature is None or self._verify is None:
            if not str(environ.get("SERVER_SOFTWARE", "")).startswith(_CAREFUL_SERVERS):
                raise UntrustedRequestError(
                    "server",
                    "it has no signature that can be checked, and this server (SERVER_SOFTWARE) may let a stranger "
                    "replace the platform's headers; serve with gunicorn, or sign tasks with DEFERRED_SECRET_KEYS",
                )
            # Only on App Engine standard there may be a signature but no key: another version of the app has the key.
            return read_body(environ, self._max_bytes)
        # The time as the signer has it, also if a test has stopped it.
        now = time.time() if self._clock is None else self._clock()
        digest = self._verify(signature, environ, queue, name, now)
        body = read_body(environ, self._max_bytes)
        if hashlib.sha256(body).hexdigest() != digest:  # neither is a secret, so the time of a comparison tells nothing
            raise UntrustedRequestError("body", "its body is not the one that was signed")
        return body

    def _body_with_token(self, environ: WSGIEnvironment) -> bytes:
        """Return the body of a request that Cloud Tasks sent to a URL of a process without keys."""
        if self._tokens is None:
            raise UntrustedRequestError(
                "no-proof",
                "it comes from Cloud Tasks by URL, and this process can check neither a signature "
                "(DEFERRED_SECRET_KEYS) nor a token (DEFERRED_SERVICE_ACCOUNT)",
            )
        self._tokens.verify(environ)
        return read_body(environ, self._max_bytes)


def _names_by_url(environ: WSGIEnvironment) -> tuple[str, str]:
    """Return the names of the task and the queue of a request that Cloud Tasks sent to a URL."""
    name, queue = environ[_CLOUD_TASKS_NAME], environ.get(_CLOUD_TASKS_QUEUE)
    if not name or "," in name or not queue or "," in queue:
        raise UntrustedRequestError(
            "task-name",
            f"it does not have exactly one {protocol.CLOUD_TASKS_TASK_NAME_HEADER} and one "
            f"{protocol.CLOUD_TASKS_QUEUE_NAME_HEADER} header",
        )
    return name, queue


def _token_verifier(settings: Settings, deployment: Deployment) -> TokenVerifier | None:
    """Return what verifies tokens; None if the settings name no service account or no URL of this service."""
    if settings.service_account is None:
        return None
    base = dict(settings.service_urls).get(deployment.service or "")
    audience = settings.audience or base
    if audience is None:
        return None
    from deferred_middleware.execution.oidc import TokenVerifier  # few processes need it

    return TokenVerifier(settings.service_account, audience)


def read_body(environ: WSGIEnvironment, limit_bytes: int) -> bytes:
    """Return the body of a request. Never read more than ``limit_bytes`` and one byte.

    Raises :class:`BodyError` with the HTTP status of the response: 400, 411 or 413.
    """
    content_length = environ.get("CONTENT_LENGTH")
    if content_length:
        # If the header was sent twice, the server joins both values with a comma, which is not a number.
        if not (content_length.isascii() and content_length.isdigit()):
            raise BodyError(400, "its Content-Length is not a number")
        length = int(content_length[:20])  # enough digits to be too large; int() refuses thousands of digits
        if length > limit_bytes:
            raise BodyError(413, "its body is too large")
    elif environ.get("wsgi.input_terminated"):
        length = limit_bytes + 1
    else:
        raise BodyError(411, "its body has no Content-Length")
    stream = environ["wsgi.input"]
    try:
        body: bytes = stream.read(length)
        if len(body) == length and content_length:
            return body
        body = _read_on(body, stream, length)
    except Exception as error:
        # Servers raise exceptions of their own, not only OSError, for a broken connection or malformed chunks.
        logger.warning("the connection ended before the body of a task was complete", exc_info=True)
        raise BodyError(400, "its body could not be read") from error
    if content_length and len(body) < length:
        raise BodyError(400, "its body is incomplete")
    if len(body) > limit_bytes:
        raise BodyError(413, "its body is too large")
    return body


def _read_on(body: bytes, stream: InputStream, length: int) -> bytes:
    """Return ``body`` and the bytes that follow it in the stream, up to ``length`` bytes in all."""
    gathered = bytearray(body)
    # One read may return less than the stream has.
    while body and len(gathered) < length:
        body = stream.read(min(length - len(gathered), _CHUNK_BYTES))
        gathered += body
    return bytes(gathered)

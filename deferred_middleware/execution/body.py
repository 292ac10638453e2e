"""Read the body of a task's request, as far as it is said to go and never further than is allowed.

WSGI tells the length in ``CONTENT_LENGTH``. Where there is none, as with ``Transfer-Encoding: chunked``, the end is
known only if the server sets ``wsgi.input_terminated``, by which it says that its stream ends with the body
(https://wsgi.readthedocs.io/en/latest/proposals-2.0.html; gunicorn, waitress and werkzeug do). A header that was sent
twice is handed on with both values and a comma between, and so is no number.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from deferred_middleware.errors import BodyError

if TYPE_CHECKING:
    from _typeshed.wsgi import InputStream, WSGIEnvironment

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

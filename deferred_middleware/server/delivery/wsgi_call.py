"""Call a WSGI app for a delivery, and keep of its response what a task's result needs.

Rules: https://peps.python.org/pep-3333/ . What a server would send is counted as sent: after that, a response that
breaks off is not complete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.server.delivery.attempt_result import EXCERPT_BYTES, redirect_reason
from deferred_middleware.wire.protocol import OUTCOME_HEADER

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

logger: Final = get_logger(__name__)

_ERROR = b"The server encountered an unexpected internal server error"
_OUTCOME = OUTCOME_HEADER.lower()


class AppAnswer(NamedTuple):
    """An app's response. ``status`` is None if it is not complete; ``reason`` says why, or what is wrong with it."""

    status: int | None
    outcome: str | None = None
    excerpt: bytes = b""
    reason: str | None = None


def answer(app: WSGIApplication, environ: WSGIEnvironment) -> AppAnswer:
    """Return the response of ``app``. If it raises, this is a response of status 500, or an incomplete one."""
    path = environ["PATH_INFO"]
    response = _Response()
    try:
        response.run(app, environ)
    # SystemExit too, because it would end this thread.
    except BaseException as error:
        logger.exception("Exception while serving %s", path)
        if response.is_complete:
            return response.answer()  # what close() raises comes after the response
        if response.is_sent:
            return AppAnswer(None, reason=f"the app's response broke off: {type(error).__name__}")
        return AppAnswer(500, excerpt=_ERROR)
    return response.answer()


class _Response:
    __slots__ = ("excerpt", "is_complete", "is_head", "is_sent", "left", "location", "outcome", "status")

    def __init__(self) -> None:
        self.status = 0
        self.outcome: str | None = None
        self.location: str | None = None
        self.excerpt = b""
        self.is_head = False
        self.is_sent = False
        self.is_complete = False
        # How many bytes of the body are still missing according to its Content-Length, if it has one.
        self.left: int | None = None

    @property
    def has_body(self) -> bool:
        return not self.is_head and self.status not in (204, 304)

    def answer(self) -> AppAnswer:
        if self.left and self.has_body:
            logger.warning("The app ended its response %d bytes before its Content-Length.", self.left)
            return AppAnswer(None, reason="the app's response is shorter than its Content-Length")
        reason = redirect_reason(self.status, self.location) if 300 <= self.status < 400 else None
        return AppAnswer(self.status, self.outcome, self.excerpt if self.has_body else b"", reason)

    def run(self, app: WSGIApplication, environ: WSGIEnvironment) -> None:
        self.is_head = environ["REQUEST_METHOD"] == "HEAD"
        iterable = app(environ, self.start)
        try:
            for part in iterable:
                if part:
                    self.write(part)
            if not self.status:
                raise RuntimeError("start_response was not called")
            self.is_complete = True
        finally:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if self.status:
            if exc_info is None:
                raise AssertionError("start_response called a second time without providing exc_info.")
            if self.is_sent:
                try:
                    assert exc_info[1] is not None
                    raise exc_info[1]
                finally:
                    exc_info = None
        if not status[:3].isdigit():
            raise ValueError(f"not a status: {status!r}")
        # As a server would send it. The characters that would end a line, or are no bytes, are found all at once.
        head = "".join([status, *[text for header in headers for text in header]])
        if "\n" in head or "\r" in head:
            raise ValueError("a line break in the response's status or headers")
        head.encode("latin-1")
        self.left = self.outcome = self.location = None
        for name, value in headers:
            lowered = name.lower()
            if lowered == "content-length":
                self.left = int(value)
                if self.left < 0:
                    raise ValueError(f"not a length: {value!r}")
            elif lowered == _OUTCOME:
                self.outcome = value
            elif lowered == "location":
                self.location = value
        self.status = int(status[:3])
        return self.write

    def write(self, part: bytes) -> None:
        if not self.status:
            raise RuntimeError("start_response was not called before body written")
        self.is_sent = True
        if self.left is not None and self.has_body:
            if len(part) > self.left:
                logger.warning("The app gave more bytes than its Content-Length.")
                part = part[: self.left]
            self.left -= len(part)
        if len(self.excerpt) < EXCERPT_BYTES:
            self.excerpt += part[: EXCERPT_BYTES - len(self.excerpt)]

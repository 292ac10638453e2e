"""Turn the result of a WSGI app into the bytes of an HTTP/1.1 response.

The head is sent together with the first part of the body, so that the client wakes only once.

Rules: https://peps.python.org/pep-3333/ and https://www.rfc-editor.org/rfc/rfc9112#section-6
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import TYPE_CHECKING, Final

from waitress.task import hop_by_hop

from deferred_middleware.errors.loggers import get_logger

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment

logger: Final = get_logger(__name__)

_ERROR = b"The server encountered an unexpected internal server error"


class ClientGoneError(Exception):
    """The client has closed the connection."""


class WSGIResponse:
    """The response to one request. ``send`` sends its bytes and raises :class:`OSError` if the client is gone."""

    def __init__(self, send: Callable[[bytes], object]) -> None:
        self._send = send
        self._has_body = True
        self._head: tuple[str, list[tuple[str, str]]] | None = None
        self._sent = False
        self._chunked = False
        # How many bytes of the body are still missing according to its Content-Length, if it has one.
        self._left: int | None = None
        self._iterable_length: int | None = None
        self.closes: bool = False

    def answer(self, app: WSGIApplication, environ: WSGIEnvironment) -> None:
        """Call ``app``. If it raises, respond with 500, or close the connection if part of the response was sent."""
        path = environ["PATH_INFO"]
        self._has_body = environ["REQUEST_METHOD"] != "HEAD"
        try:
            self._run(app, environ)
        except ClientGoneError:
            logger.info("Client disconnected while serving %s", path)
            self.closes = True
        # Catch SystemExit too, because it would end this thread and the client would wait forever.
        except BaseException:
            logger.exception("Exception while serving %s", path)
            if self._sent:
                self.closes = True
            else:
                self.refuse("500 Internal Server Error", _ERROR)

    def refuse(self, status: str, body: bytes) -> None:
        """Respond without calling the app."""
        self._left, self._chunked, self._sent = None, False, False
        self._head = status, [("Content-Type", "text/plain; charset=utf-8")]
        self._iterable_length = 1
        try:
            self._write(body)
        except ClientGoneError:
            self.closes = True

    def _run(self, app: WSGIApplication, environ: WSGIEnvironment) -> None:
        iterable = app(environ, self._start)
        try:
            if isinstance(iterable, Sized):
                self._iterable_length = len(iterable)
            for part in iterable:
                if part:
                    self._write(part)
            self._finish()
        finally:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()

    def _start(
        self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if self._head is not None:
            if exc_info is None:
                raise AssertionError("start_response called a second time without providing exc_info.")
            if self._sent:
                try:
                    assert exc_info[1] is not None
                    raise exc_info[1]
                finally:
                    exc_info = None
        if not status[:3].isdigit() or _breaks_line(status):
            raise ValueError(f"not a status: {status!r}")
        self._left = None
        for name, value in headers:
            if _breaks_line(name) or _breaks_line(value):
                raise ValueError(f"a line break in the header {name!r}")
            lowered = name.lower()
            if lowered == "content-length":
                self._left = int(value)
                if self._left < 0:
                    raise ValueError(f"not a length: {value!r}")
            elif lowered in hop_by_hop:
                raise AssertionError(f"{name} is a hop-by-hop header, which an app can't use (PEP 3333)")
        self._head = status, [*headers]
        return self._write

    def _write(self, part: bytes) -> None:
        if self._head is None:
            raise RuntimeError("start_response was not called before body written")
        start = b"" if self._sent else self._start_of(self._head, len(part))
        self._emit(start + self._framed(part))

    def _finish(self) -> None:
        if self._head is None:
            raise RuntimeError("start_response was not called before body written")
        end = b"" if self._sent else self._start_of(self._head, 0, whole=True)
        if self._chunked:
            end += b"0\r\n\r\n"
        if end:
            self._emit(end)
        if self._left and self._has_body:
            logger.warning("The app ended its response %d bytes before its Content-Length.", self._left)
            self.closes = True

    def _start_of(self, head: tuple[str, list[tuple[str, str]]], length: int, *, whole: bool = False) -> bytes:
        """Return the head. ``length`` is the length of the first part; if ``whole``, that part is the whole body."""
        status, headers = head
        self._has_body = self._has_body and not (status.startswith(("1", "204", "304")))
        lines = [f"HTTP/1.1 {status}", *[f"{name}: {value}" for name, value in headers]]
        if self._has_body and self._left is None:
            if whole or self._iterable_length == 1:
                self._left = length
                lines.append(f"Content-Length: {length}")
            else:
                self._chunked = True
                lines.append("Transfer-Encoding: chunked")
        if self.closes:
            lines.append("Connection: close")
        lines.append("\r\n")
        return "\r\n".join(lines).encode("latin-1")

    def _framed(self, part: bytes) -> bytes:
        if not self._has_body:
            return b""
        if self._chunked:
            return b"%x\r\n%b\r\n" % (len(part), part)
        if self._left is not None:
            if len(part) > self._left:
                logger.warning("The app gave more bytes than its Content-Length.")
                part = part[: self._left]
            self._left -= len(part)
        return part

    def _emit(self, data: bytes) -> None:
        self._sent = True
        try:
            self._send(data)
        except OSError as error:
            raise ClientGoneError from error


def _breaks_line(text: str) -> bool:
    return "\n" in text or "\r" in text

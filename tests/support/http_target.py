"""An HTTP target: a real server that records the requests of tasks and answers as the test says."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.threadedserver import ThreadedHTTPServer

_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A request; ``headers`` are by lower-case names."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.headers.get("x-cloudtasks-taskname") or self.headers["x-appengine-taskname"]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A response; it is sent after ``delay_seconds``."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    delay_seconds: float = 0.0


class HttpTarget:
    """The server, as a context manager. ``answer`` chooses each response."""

    def __init__(self, answer: Callable[[Seen], Reply] = lambda seen: Reply()) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self._condition = threading.Condition()
        target = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(method=self.command, path=self.path, headers=headers, body=body)
                target.note(seen)
                reply = target.answer(seen)
                time.sleep(reply.delay_seconds)
                with contextlib.suppress(OSError):
                    self.send_response(reply.status)
                    for name, value in reply.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(reply.body)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(reply.body)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = answer_any

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        self._server = ThreadedHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HttpTarget:
        """Start the server."""
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def note(self, seen: Seen) -> None:
        """Record a request."""
        with self._condition:
            self.seen.append(seen)
            self._condition.notify_all()

    def wait_for(self, number: int, timeout_seconds: float = _PATIENCE_SECONDS) -> list[Seen]:
        """Wait until so many requests have come; return all."""
        with self._condition:
            assert self._condition.wait_for(lambda: len(self.seen) >= number, timeout_seconds), self.seen
            return list(self.seen)

    def forget(self) -> None:
        """Forget the requests."""
        with self._condition:
            self.seen.clear()

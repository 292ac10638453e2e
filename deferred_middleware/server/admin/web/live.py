"""Tells open pages that something has changed, by server-sent events.

A page then loads itself again and replaces the parts that have changed, so nothing is rendered in two ways. A stream
takes a thread of the server while it is open. Therefore only :data:`MOST_STREAMS` are open at a time, each for
:data:`STREAM_SECONDS`; browsers connect again by themselves. Further pages get one event and come back later, as if
they polled.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator

MOST_STREAMS = 6
STREAM_SECONDS = 60.0
_LOOK_EVERY_SECONDS = 0.25
_COMMENT_EVERY_SECONDS = 5.0
_RECONNECT_MS = 1000
_RECONNECT_CROWDED_MS = 2000


class LiveUpdates:
    """Streams of events. ``version`` returns a value that differs after each change."""

    def __init__(self, version: Callable[[], object]) -> None:
        self._version = version
        self._closing = threading.Event()
        self._places = threading.BoundedSemaphore(MOST_STREAMS)

    def close(self) -> None:
        """End all streams, so that the server can stop."""
        self._closing.set()

    def stream(self) -> Generator[bytes, None, None]:
        """Return the events for one page."""
        if self._closing.is_set() or not self._places.acquire(blocking=False):
            yield f"retry: {_RECONNECT_CROWDED_MS}\nevent: changed\ndata: {self._version()}\n\n".encode()
            return
        try:
            yield from self._events()
        finally:
            self._places.release()

    def _events(self) -> Iterator[bytes]:
        shown: object = None
        until = time.monotonic() + STREAM_SECONDS
        comment_at = 0.0
        yield f"retry: {_RECONNECT_MS}\n\n".encode()
        while time.monotonic() < until:
            now = self._version()
            if now != shown:
                shown = now
                yield f"event: changed\ndata: {now}\n\n".encode()
                comment_at = time.monotonic() + _COMMENT_EVERY_SECONDS
            elif time.monotonic() >= comment_at:
                # It also shows whether the browser is still there.
                yield b": no change\n\n"
                comment_at = time.monotonic() + _COMMENT_EVERY_SECONDS
            if self._closing.wait(_LOOK_EVERY_SECONDS):
                return

"""Streams of changes: how many there are, and how long they last."""

from __future__ import annotations

import pytest

from deferred_middleware.server.admin.web import live
from deferred_middleware.server.admin.web.live import MOST_STREAMS, LiveUpdates


def test_a_crowd_gets_one_event_each() -> None:
    """If all places are taken, a page gets one event and is told to come back; a place that is free again is used."""
    updates = LiveUpdates(lambda: 1)
    streams = [updates.stream() for _ in range(MOST_STREAMS)]
    for stream in streams:
        next(stream)

    (only,) = updates.stream()
    assert b"event: changed" in only
    assert b"retry: 2000" in only

    streams.pop().close()
    assert b"event:" not in next(updates.stream())
    updates.close()


def test_a_stream_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream doesn't take a thread for ever; the browser connects again."""
    monkeypatch.setattr(live, "STREAM_SECONDS", 0.3)
    monkeypatch.setattr(live, "_COMMENT_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(live, "_LOOK_EVERY_SECONDS", 0.01)

    events = list(LiveUpdates(lambda: "same").stream())

    assert sum(b"event: changed" in event for event in events) == 1
    assert b": no change\n\n" in events

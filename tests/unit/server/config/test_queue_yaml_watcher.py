"""Queues that are reloaded when queue.yaml changes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from deferred_middleware.server.config.queue_yaml import QueueYamlError, QueueYamlWatcher
from deferred_middleware.server.config.queues import QueueRegistry

_PATIENCE_SECONDS = 30.0


class Followed:
    """A queue.yaml, and the registry that its watcher updates."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.queues = QueueRegistry()
        self._changed = threading.Semaphore(0)
        self.queues.on_change(self._changed.release)

    def watcher(self, *, required: bool = False) -> QueueYamlWatcher:
        """Return a watcher that checks the file every 10 ms."""
        return QueueYamlWatcher(self.path, self.queues, required=required, look_seconds=0.01)

    def wait_for_change(self) -> None:
        """Wait until the queues change once more."""
        assert self._changed.acquire(timeout=_PATIENCE_SECONDS)


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    """A file with one queue."""
    followed = Followed(tmp_path / "queue.yaml")
    followed.path.write_text("queue:\n- name: a\n  rate: 1/s\n")
    return followed


def test_the_file_holds_from_the_start(followed: Followed) -> None:
    """Creating the watcher loads the file, before watching starts."""
    followed.watcher()
    assert sorted(followed.queues) == ["a", "default"]


def test_changes_are_followed(followed: Followed) -> None:
    """The queues follow the file, whether it is rewritten in place or replaced by another file."""
    with followed.watcher():
        followed.wait_for_change()
        followed.path.write_text("queue:\n- name: a\n  rate: 2/s\n")
        followed.wait_for_change()
        assert followed.queues["a"].rate_per_second == 2
        other = followed.path.with_name("other.yaml")
        other.write_text("queue:\n- name: b\n")
        os.replace(other, followed.path)
        followed.wait_for_change()
        assert sorted(followed.queues) == ["b", "default"]


def test_a_file_that_comes_later_is_followed(followed: Followed) -> None:
    """Without a file there is only ``default``; a file that is created later is loaded."""
    followed.path.unlink()
    with followed.watcher():
        assert sorted(followed.queues) == ["default"]
        followed.path.write_text("queue:\n- name: a\n")
        followed.wait_for_change()
        assert sorted(followed.queues) == ["a", "default"]


class Heard:
    """Waits until the log contains a text."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self._caplog = caplog
        self._condition = threading.Condition()
        emit = caplog.handler.emit

        def emitting(record: object) -> None:
            with self._condition:
                emit(record)  # type: ignore[arg-type]
                self._condition.notify_all()

        caplog.handler.emit = emitting  # type: ignore[method-assign]

    def wait_for(self, text: str) -> None:
        """Wait until the log contains ``text``."""
        with self._condition:
            assert self._condition.wait_for(lambda: text in self._caplog.text, _PATIENCE_SECONDS)


def test_a_mistake_leaves_the_last_good_configuration(followed: Followed, caplog: pytest.LogCaptureFixture) -> None:
    """If the changed file is invalid, the error is logged and the queues stay; the corrected file is loaded."""
    heard = Heard(caplog)
    with followed.watcher():
        followed.wait_for_change()
        followed.path.write_text("queue:\n- name: a\n  rate: fast\n")
        heard.wait_for(f"{followed.path}, line 3: rate is 'fast'")
        heard.wait_for("The queues stay as they are.")
        assert followed.queues["a"].rate_per_second == 1
        followed.path.write_text("queue:\n- name: a\n  rate: 3/s\n")
        followed.wait_for_change()
        assert followed.queues["a"].rate_per_second == 3


def test_a_file_that_vanishes_leaves_the_last_good_configuration(
    followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    """If the file is removed, that is logged and the queues stay."""
    heard = Heard(caplog)
    with followed.watcher():
        followed.path.unlink()
        heard.wait_for("can't be read: No such file or directory. The queues stay as they are.")
        assert sorted(followed.queues) == ["a", "default"]


def test_a_mistake_at_the_start_is_an_error(followed: Followed) -> None:
    """At the start, an invalid file is an error, and so is a missing file that is required."""
    followed.path.write_text("queue:\n- name: a\n  rate: fast\n")
    with pytest.raises(QueueYamlError, match="line 3"):
        followed.watcher()
    followed.path.unlink()
    with pytest.raises(QueueYamlError, match="No such file"):
        followed.watcher(required=True)

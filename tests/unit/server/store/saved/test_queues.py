"""What the store keeps of queues that the Cloud Tasks API made."""

from __future__ import annotations

from pathlib import Path

from deferred_middleware.server.store.saved.queues import SavedQueue
from deferred_middleware.server.store.store import TaskStore
from tests.support.storing import NOW, Clock


def test_a_saved_queue_is_there_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    """Settings, deletions and purges are on disk."""
    path = tmp_path / "tasks.sqlite"
    store = TaskStore(path, clock=clock, elapsed=clock)
    store.saved_queues.save("mail", '{"name": "mail"}', None)
    assert store.saved_queues.purged("mail") == NOW
    store.saved_queues.save("gone", "{}", '{"rate": 5}')
    store.saved_queues.delete("gone", '{"rate": 6}', 60)
    until = store.saved_queues.now_usec() + 60_000_000
    store.close()
    reopened = TaskStore(path, clock=clock, elapsed=clock)
    try:
        assert reopened.saved_queues.all() == {
            "mail": SavedQueue(settings='{"name": "mail"}', replaced=None, deleted_until_usec=None, purged_usec=NOW),
            "gone": SavedQueue(settings=None, replaced='{"rate": 6}', deleted_until_usec=until, purged_usec=None),
        }
    finally:
        reopened.close()


def test_a_saved_queue_can_be_forgotten(store: TaskStore) -> None:
    """One queue is forgotten by its name, and all without a name."""
    for name in ("a", "b", "c"):
        store.saved_queues.save(name, "{}", None)
    store.saved_queues.forget("a")
    assert sorted(store.saved_queues.all()) == ["b", "c"]
    store.saved_queues.forget()
    assert store.saved_queues.all() == {}


def test_settings_keep_the_time_of_the_purge(store: TaskStore) -> None:
    """A change of a queue's settings does not forget when the queue was purged."""
    store.saved_queues.purged("mail")
    store.saved_queues.save("mail", "{}", None)
    saved = store.saved_queues.all()["mail"]
    assert (saved.settings, saved.purged_usec) == ("{}", NOW)

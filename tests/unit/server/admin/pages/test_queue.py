"""The page of a queue, and its purge."""

from __future__ import annotations

from deferred_middleware.server.config.queues import QueueConfig
from deferred_middleware.server.store.store import TaskStore
from tests.support.visiting import Visitor


def test_a_purge_has_a_number_and_is_typed(visitor: Visitor) -> None:
    """The page says how many tasks there are; only the name of the queue deletes them."""
    for _ in range(3):
        visitor.add(eta_usec=2**61)
    asked = visitor.get("/queues/default/purge")
    assert "3 unfinished tasks" in asked.text

    wrong = visitor.press(asked, "Delete 3 tasks", typed="mail")
    assert wrong.status == 400
    assert "type default to confirm" in wrong.text
    assert visitor.store.queries.counts() == {"default": {"ready": 3}}

    done = visitor.press(wrong, "Delete 3 tasks", typed="default")
    assert "3 tasks of queue default deleted." in done.text
    assert visitor.store.queries.counts() == {}


def test_a_purge_of_more_than_was_asked_is_refused(visitor: Visitor) -> None:
    """If tasks came since the question, the answer says how many there are now."""
    visitor.add(eta_usec=2**61)
    asked = visitor.get("/queues/default/purge")
    visitor.add(eta_usec=2**61)

    answer = visitor.press(asked, "Delete 1 task", typed="default")

    assert answer.status == 409
    assert "has 2 unfinished tasks now, and had 1 when you were asked" in answer.text
    assert visitor.store.queries.counts() == {"default": {"ready": 2}}


def test_an_empty_queue_has_nothing_to_purge(visitor: Visitor) -> None:
    """Without tasks there is no button."""
    page = visitor.get("/queues/default/purge")

    assert "0 unfinished tasks" in page.text
    assert not [button for button in page.buttons if "Delete" in button.label]


def test_a_queue_shows_its_configuration(store: TaskStore) -> None:
    """The page has the configuration, and what can be done."""
    visitor = Visitor(store, QueueConfig(name="mail", rate_per_second=0.5, max_concurrent_requests=3, target="worker"))
    visitor.add(queue="mail", eta_usec=2**61)

    page = visitor.get("/queues/mail")
    assert "30/m" in page.text
    assert "0 of 3" in page.text
    assert "worker" in page.text

    done = visitor.press(page, "Run scheduled now")
    assert "1 scheduled task of queue mail made due." in done.text
    assert [change["action"] for change in visitor.change_log.newest()] == ["run-scheduled"]


def test_an_unknown_queue_is_a_page(visitor: Visitor) -> None:
    """The 404 page names the queues that there are."""
    for path in ("/queues/nowhere", "/queues/nowhere/purge"):
        page = visitor.ask("GET", path)
        assert page.status == 404
        assert 'href="/queues/default"' in page.html


def test_a_purge_is_undone(visitor: Visitor) -> None:
    """The overview offers to undo a purge, and does."""
    visitor.add(eta_usec=2**61)
    asked = visitor.get("/queues/default/purge")
    purged = visitor.press(asked, "Delete 1 task", typed="default")
    assert "For ten minutes you can undo that." in purged.text

    back = visitor.press(purged, "Undo default")

    assert "1 task of queue default restored." in back.text
    assert visitor.store.queries.counts() == {"default": {"ready": 1}}
    again = visitor.press(purged, "Undo default")
    assert again.status == 409
    assert "No purge of queue default can be undone" in again.text

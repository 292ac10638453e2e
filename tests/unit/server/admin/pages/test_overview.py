"""The first page: queues as they stand, and what can be done to them."""

from __future__ import annotations

from tests.support.visiting import Visitor


def test_an_empty_store_shows_the_default_queue(visitor: Visitor) -> None:
    """Without any task, the page shows the queue that always exists, in less than 60 KB."""
    page = visitor.get("/")

    assert "default" in page.text
    assert len(page.body) < 60_000


def test_a_queue_is_paused_and_resumed(visitor: Visitor) -> None:
    """The button pauses the queue, says so, and becomes the one that resumes it."""
    visitor.add()

    paused = visitor.press(visitor.get("/"), "Pause default")
    assert visitor.store.operations.paused() == {"default"}
    assert "Queue default is paused." in paused.text
    assert paused.button("Resume default").command == "deferred-middleware resume default"

    resumed = visitor.press(paused, "Resume default")
    assert visitor.store.operations.paused() == frozenset()
    assert "Queue default runs again." in resumed.text
    assert "runs again" not in visitor.get("/").text
    assert visitor.woken == 2
    assert [(change["via"], change["action"]) for change in visitor.change_log.newest()] == [
        ("page", "resume"),
        ("page", "pause"),
    ]


def test_an_unknown_queue_is_a_page_that_says_what_there_is(visitor: Visitor) -> None:
    """A form for a queue that is gone leads to a page with the queues that there are."""
    page = visitor.post("/queues/mial/pause")

    assert page.status == 404
    assert "There is no queue 'mial'" in page.text
    assert 'href="/queues/default"' in page.html

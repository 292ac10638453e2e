"""The pages of failures."""

from __future__ import annotations

import pytest

from tests.support.visiting import Visitor
from tests.unit.server.admin.failing import TRACEBACK, end, fail


def test_a_store_without_failures(visitor: Visitor) -> None:
    """Without failures, the page says so."""
    assert "No task fails" in visitor.get("/failures").text


def test_groups_are_shown_with_a_retry(visitor: Visitor) -> None:
    """A group has its exception, its place, its numbers, and a button with its command."""
    for number in range(3):
        fail(visitor.store, f"t{number}")
    page = visitor.get("/failures")
    assert "no such user <b>5</b>" in page.text
    assert "<b>5</b>" not in page.html
    assert "/app/mail.py:12 in send" in page.text
    assert page.button("Retry all 3 ValueError").command == "deferred-middleware retry --failure 1"
    after = visitor.press(page, "Retry all 3 ValueError")
    assert "3 dead letters will be tried again." in after.text
    assert visitor.store.queries.counts()["default"] == {"ready": 3}


def test_the_new_attempt_is_beside_the_old_one(visitor: Visitor) -> None:
    """After a retry from the page, both attempts of the task are there; the app's own frames stand out."""
    fail(visitor.store, "one")
    page = visitor.get("/failures/1")
    assert "Change the code, and retry the task" in page.text
    page = visitor.press(page, "Retry this task")
    end(visitor.store, "succeeded", b"it is done now\n")
    page = visitor.get("/failures/1?task=1")
    assert "Attempt 1" in page.text
    assert "Attempt 2" in page.text
    assert "it is done now" in page.text
    assert 'class="frame mine"><a href="vscode://file/app/mail.py:12">/app/mail.py:12</a>' in page.html
    assert 'class="frame mine"><a href="vscode://file/usr' not in page.html
    assert "None of its tasks is left" in page.text
    assert "ValueError" in visitor.get("/failures?solved=1").text


def test_a_failing_task_is_run_now(visitor: Visitor) -> None:
    """A task in back-off runs now."""
    fail(visitor.store, "one", "ready")
    visitor.press(visitor.get("/failures/1"), "Retry this task")
    assert [task.name for task in visitor.store.claim_forced(1)] == ["one"]


@pytest.mark.parametrize("path", ["/failures/7", "/failures/x", "/failures?before=x"])
def test_what_is_not_there_gets_a_sentence(visitor: Visitor, path: str) -> None:
    """Unknown groups and pages are problems, not tracebacks."""
    page = visitor.ask("GET", path)
    assert page.status in (400, 404)
    assert "There is no failure" in page.text or "next_before" in page.text


def test_an_example_that_was_deleted(visitor: Visitor) -> None:
    """If the chosen task was deleted meanwhile, the page says so."""
    fail(visitor.store, "one")
    assert "There is no example" in visitor.get("/failures/1?task=99").text


def test_everything_of_a_task_is_text(visitor: Visitor) -> None:
    """Hostile exceptions are shown as text, without what a browser would hide."""
    hostile = 'Traceback (most recent call last):\n  File "/app/<script>.py", line 1, in \u202eevil\n    x\n'
    fail(visitor.store, "one", response=f"{hostile}E</mark><script>alert(1)</script>: \x1b[31m\n".encode())
    fail(visitor.store, "two", response=TRACEBACK.replace(b"no such user", b"<script>alert(2)</script>"))
    for path in ("/failures", "/failures/1", "/failures/2"):
        page = visitor.get(path)
        assert "<script>alert" not in page.html
        assert "\u202e" not in page.html
        assert "\x1b" not in page.html


def test_read_only_servers_retry_nothing(visitor: Visitor) -> None:
    """With --read-only, the buttons do nothing."""
    fail(visitor.store, "one")
    reader = Visitor(visitor.store, read_only=True)
    assert reader.post("/failures/1/retry").status == 403
    assert visitor.store.queries.counts()["default"] == {"failed": 1}

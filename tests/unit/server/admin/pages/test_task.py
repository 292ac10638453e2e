"""The page of one task: everything that is known of it, as text."""

from __future__ import annotations

import pickle
import time

import pytest

from deferred_middleware.server.store.records import AttemptRecord, Completion, Lane, NewTask
from tests.support import sample
from tests.support.visiting import Visitor

TRACEBACK = """Traceback (most recent call last):
  File "/usr/lib/python3.11/site-packages/flask/app.py", line 1, in call
    return f()
  File "/app/shop.py", line 7, in charge
    raise ValueError("<b>no</b>")
ValueError: <b>no</b>
"""


def attempted(visitor: Visitor, task_id: int, *excerpts: str, state: str = "failed") -> None:
    """Make attempts of a task, of which the last one leaves it in ``state``."""
    for number, excerpt in enumerate(excerpts, 1):
        last = number == len(excerpts)
        (claimed,) = visitor.store.claim({Lane("default", ""): 1}, 2**62)
        assert claimed.id == task_id
        now = time.time_ns() // 1000
        completion = Completion(
            task_id=task_id,
            queue="default",
            url="/work",
            claim_token=claimed.claim_token,
            state=state if last else "ready",  # type: ignore[arg-type] # one of the states
            eta_usec=now,
            first_attempt_usec=now,
            finished_usec=now if last and state != "ready" else None,
            retry_count=number,
            execution_count=number,
            previous_response=500,
            retry_reason="App Error",
            attempt=AttemptRecord(
                number=number,
                started_usec=now,
                duration_usec=1500 * number,
                status=500,
                reason="status 500",
                service="default",
                excerpt=excerpt.encode(),
            ),
        )
        assert visitor.store.complete([completion]) == [True]


def call(*args: object, **kwargs: object) -> bytes:
    """Return the payload of a call."""
    return pickle.dumps((sample.pair, args, kwargs))


def test_the_call_is_shown_as_python(visitor: Visitor) -> None:
    """The function and each argument are there, and the page needs no unpickling."""
    task_id = visitor.add(body=call(42, "alice", note="hi"), eta_usec=2**61)

    page = visitor.get(f"/tasks/{task_id}")

    assert "tests.support.sample.pair(" in page.html
    assert "42," in page.html
    assert "note</span>=&#39;hi&#39;," in page.html
    assert "Its ETA is" in page.text
    assert sample.ran == []


def test_users_frames_stand_out_and_lead_to_the_editor(visitor: Visitor) -> None:
    """The app's own frame is marked and linked; the library's is not marked."""
    task_id = visitor.add()
    attempted(visitor, task_id, TRACEBACK)

    html = visitor.get(f"/tasks/{task_id}").html

    assert '<span class="frame mine"><a href="vscode://file/app/shop.py:7">/app/shop.py:7</a>' in html
    assert '<span class="frame"><a href="vscode://file/usr/lib/' in html
    assert "ValueError: &lt;b&gt;no&lt;/b&gt;" in html
    assert "<b>no</b>" not in html


def test_two_attempts_are_compared(visitor: Visitor) -> None:
    """The difference has the lines that only one of them has."""
    task_id = visitor.add()
    attempted(visitor, task_id, "one\nsame", "two\nsame")

    html = visitor.get(f"/tasks/{task_id}?a=1&b=2").html

    assert '<span class="removed">- one' in html
    assert '<span class="added">+ two' in html
    assert visitor.ask("GET", f"/tasks/{task_id}?a=1&b=9").status == 400
    assert "There is no attempt" in visitor.ask("GET", f"/tasks/{task_id}?a=1&b=9").text


def test_a_dead_letter_is_retried(visitor: Visitor) -> None:
    """The button retries it; pressed again on the old page, it says what has changed."""
    task_id = visitor.add()
    attempted(visitor, task_id, "no")
    page = visitor.get(f"/tasks/{task_id}")

    again = visitor.press(page, "Retry")
    assert f"Task {task_id} is tried again." in again.text
    stale = visitor.press(page, "Retry")
    assert stale.status == 409
    assert f"Task {task_id} has not failed for good: it waits to run" in stale.text


@pytest.mark.parametrize("action", ["Run now", "Delete"])
def test_a_task_that_is_gone_is_a_sentence(visitor: Visitor, action: str) -> None:
    """A button of a task that was deleted meanwhile leads to a 404 page."""
    task_id = visitor.add(eta_usec=2**61)
    page = visitor.get(f"/tasks/{task_id}")
    visitor.store.operations.delete([task_id])

    answer = visitor.press(page, action)

    assert answer.status == 404
    assert f"There is no task '{task_id}'" in answer.text
    assert visitor.ask("GET", f"/tasks/{task_id}").status == 404


def test_a_task_is_deleted(visitor: Visitor) -> None:
    """The page leads back to the list."""
    task_id = visitor.add(eta_usec=2**61)

    page = visitor.press(visitor.get(f"/tasks/{task_id}"), "Delete")

    assert f"Task {task_id} is deleted." in page.text
    assert visitor.store.queries.get_by_id(task_id) is None


def test_signatures_are_masked(visitor: Visitor) -> None:
    """Nobody can send the task again with what the page shows."""
    secret = "v1;k=1;s=the-secret"
    task_id = visitor.add(headers=(("X-Deferred-Signature", secret), ("Authorization", "Bearer secret")))

    html = visitor.get(f"/tasks/{task_id}").html

    assert "the-secret" not in html
    assert "Bearer" not in html
    assert "v1;k=1;s=…" in html


HOSTILE = [
    "<script>alert(1)</script>",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egpj.exe\u2066",
    "'\"><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "\x00\ud800",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_everything_from_a_task_is_text(visitor: Visitor, text: str) -> None:
    """Whatever an argument, a header, a URL or a response has, the page shows it as text."""
    encoded = text.encode("utf-8", "surrogatepass")
    task_id = visitor.add(
        url="/work?" + text.encode("ascii", "backslashreplace").decode(),
        body=pickle.dumps((sample.pair, (text,), {"k": text})) if "\ud800" not in text else encoded,
        headers=(("X-Own", text.encode("utf-8", "replace").decode("latin-1")),),
        target="x",
    )
    for path in (f"/tasks/{task_id}", "/tasks"):
        html = visitor.get(path).html
        assert "<script>alert" not in html
        assert "<img src=x" not in html
        assert "49{" not in html
        assert not any(character in html for character in "\x1b\x00\x07\u202e\u2066")


def test_ten_megabytes_of_arguments_are_a_small_page(visitor: Visitor) -> None:
    """A page does not grow with the payload."""
    task_id = visitor.add(body=call("x" * 10_000_000, list(range(100_000))))

    page = visitor.get(f"/tasks/{task_id}")

    assert len(page.body) < 60_000
    assert "10,000,000 characters" in page.text


def test_the_eta_and_the_queue_are_changed(visitor: Visitor) -> None:
    """A waiting task gets another ETA and another queue; a time that means nothing is a sentence."""
    task_id = visitor.add(eta_usec=2**61, name="mine")
    page = visitor.get(f"/tasks/{task_id}")

    assert visitor.press(page, "Change ETA", eta="soon").status == 400
    assert "is not a time" in visitor.press(page, "Change ETA", eta="2026-99-99").text
    changed = visitor.press(page, "Change ETA", eta="10min")
    assert f"The ETA of task {task_id} is changed." in changed.text
    task = visitor.store.queries.get_by_id(task_id)
    assert task is not None
    assert 500 < task.eta_usec / 1e6 - time.time() < 601

    assert visitor.press(changed, "Move", queue="nowhere").status == 404
    assert f"Task {task_id} is in queue default." in visitor.press(changed, "Move", queue="default").text


def test_a_task_of_an_open_transaction_says_so(visitor: Visitor) -> None:
    """Until its transaction is committed, the task is listed and shown with the reason, and nothing changes it."""
    visitor.store.transactional.stage([NewTask(queue="default", url="/_cb/deferred/shop/charge", eta_usec=0)], "abc")

    listed = visitor.get("/tasks?queue=default")
    assert "It is held until the datastore transaction that enqueued it is committed." in listed.text
    page = visitor.get("/tasks/1")
    assert "it run? It is held until the datastore transaction" in page.text
    assert "Nothing can be done until the transaction ends." in page.text
    for action in ("run", "retry", "delete"):
        assert visitor.post(f"/tasks/1/{action}").status == 409, action

    visitor.store.transactional.commit(["abc"])
    assert "held" not in visitor.get("/tasks/1").text


def test_a_purged_task_is_gone(visitor: Visitor) -> None:
    """Tasks of a purge that can still be undone are neither listed nor shown."""
    task_id = visitor.add()
    visitor.store.purges.purge("default")

    assert visitor.ask("GET", f"/tasks/{task_id}").status == 404
    assert "No tasks yet" in visitor.get("/tasks").text

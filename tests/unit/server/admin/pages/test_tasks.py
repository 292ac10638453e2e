"""The list of tasks: filters in the address, pages, and what means nothing."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from deferred_middleware.server.store.store import TaskStore
from tests.support.visiting import FORM_TOKEN, Visitor


def shown(html: str) -> list[int]:
    """Return the IDs of the tasks of a page, in their order."""
    return [int(part.partition('"')[0]) for part in html.split('data-row data-key="')[1:]]


def test_the_newest_come_first_and_pages_follow(visitor: Visitor) -> None:
    """Each page has a link to the next one; all together have each task once."""
    ids = [visitor.add(eta_usec=2**61) for _ in range(120)]
    path = "/tasks"
    seen: list[int] = []
    while True:
        html = visitor.get(path).html
        seen += shown(html)
        rest = html.partition('rel="next" href="')[2]
        if not rest:
            break
        path = "/tasks" + rest.partition('"')[0].replace("&amp;", "&")

    assert seen == ids[::-1]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("queue=mail", {"m1"}),
        ("state=scheduled", {"m1", "d1"}),
        ("state=due", {"d2"}),
        ("function=send", {"m1", "d2"}),
        ("name=D", {"d1", "d2"}),
        ("text=alice", {"d1"}),
        ("text=alice&queue=mail", set()),
        ("newer=1h&older=0s", {"m1", "d1", "d2"}),
    ],
)
def test_filters_are_in_the_address(visitor: Visitor, query: str, names: set[str]) -> None:
    """The address finds the tasks, and the form shows what it asks for."""
    ids = {
        visitor.add(name="m1", queue="mail", eta_usec=2**61): "m1",
        visitor.add(name="d1", url="/x", body=b"to alice", eta_usec=2**61): "d1",
        visitor.add(name="d2", eta_usec=1): "d2",
    }
    page = visitor.get(f"/tasks?{query}")

    assert {ids[task] for task in shown(page.html)} == names
    assert "deferred-middleware tasks --" in page.text


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("state=nonsense", "is not a state; the states are"),
        ("queue=nowhere", "There is no queue 'nowhere'"),
        ("service=nowhere", "is not served here"),
        ("older=soon", "is not a duration"),
        ("before=x", "is not the ID of a task"),
        ("before=" + "9" * 30, "is not the ID of a task"),
        ("state=" + quote("<script>"), "is not a state"),
        ("slower=2s&faster=1s", "No task is both"),
    ],
)
def test_a_filter_that_means_nothing_is_a_sentence(visitor: Visitor, query: str, words: str) -> None:
    """The page says what is wrong, and keeps the form as it was filled in."""
    visitor.add()
    page = visitor.ask("GET", f"/tasks?{query}")

    assert page.status == 400
    assert words in page.text
    assert "<script>alert" not in page.html
    assert 'name="function"' in page.html


def test_each_waiting_task_says_why(visitor: Visitor) -> None:
    """A sentence stands with each task that waits."""
    visitor.add(eta_usec=2**61)
    visitor.store.operations.pause("default")
    visitor.add()

    text = visitor.get("/tasks").text

    assert "Its ETA is" in text
    assert "Queue default is paused" in text


def test_a_task_is_run_from_the_list(visitor: Visitor) -> None:
    """The button of a row runs its task, and leads back to the list with its filters."""
    task_id = visitor.add(eta_usec=2**61)

    page = visitor.press(visitor.get("/tasks?state=scheduled"), f"Run task {task_id}")

    assert f"Task {task_id} runs as soon as its service can." in page.text
    assert "No task matches these filters." in page.text
    assert visitor.store.forced_waiting


def test_an_empty_list_says_what_comes(store: TaskStore) -> None:
    """Without tasks, the page says when there will be some."""
    assert "Tasks appear here as soon as the app defers a call." in Visitor(store).get("/tasks").text


def test_a_server_that_only_shows_has_no_buttons(store: TaskStore) -> None:
    """With --read-only, the buttons can't be pressed, and pressing them changes nothing."""
    visitor = Visitor(store, read_only=True)
    task_id = visitor.add(eta_usec=2**61)

    page = visitor.get("/tasks")
    answer = visitor.press(page, f"Run task {task_id}")

    assert "This server only shows" in page.text
    assert page.html.count("disabled") >= 4
    assert answer.status == 403
    assert "--read-only" in answer.text


def selection(*ids: int, action: str) -> list[tuple[str, str]]:
    """Return what the form with the check boxes posts."""
    return [("form_token", FORM_TOKEN), ("action", action), *(("id", str(one)) for one in ids)]


def test_a_selection_is_changed_after_a_question(visitor: Visitor) -> None:
    """The question has the number; the answer says what was done, and what was left alone."""
    ids = [visitor.add(eta_usec=2**61) for _ in range(3)]
    asked = visitor.ask("POST", "/tasks/selected", selection(*ids, action="delete"))
    assert "Delete: 3 tasks" in asked.text
    assert f"deferred-middleware delete {ids[0]} {ids[1]} {ids[2]}" in asked.text
    visitor.store.operations.delete([ids[0]])

    button = asked.button("Delete")
    fields = [*button.fields, *(("id", str(one)) for one in ids if ("id", str(one)) not in button.fields)]
    done = visitor.ask("POST", button.path, fields)

    assert "2 tasks deleted. 1 other task left alone" in visitor.get(done.header("Location")).text
    assert visitor.store.queries.counts() == {}


def test_nothing_selected_is_a_sentence(visitor: Visitor) -> None:
    """Without a selection nothing is asked; what is no action or no ID is refused."""
    answer = visitor.ask("POST", "/tasks/selected", selection(action="run"))
    assert "No task is selected." in visitor.get(answer.header("Location")).text
    assert visitor.ask("POST", "/tasks/selected", selection(1, action="eat")).status == 400
    wrong = [*selection(action="run"), ("id", "x")]
    assert visitor.ask("POST", "/tasks/selected", wrong).status == 400


def test_all_that_match_are_changed(visitor: Visitor) -> None:
    """The question has the number of what matches; what is added after it is left alone."""
    for index in range(7):
        visitor.add(eta_usec=2**61, name=f"old{index}", queue="mail" if index < 5 else "default")
    asked = visitor.get("/tasks/all?queue=mail")
    assert "5 tasks match" in asked.text
    visitor.add(eta_usec=2**61, name="new", queue="mail")

    done = visitor.press(asked, "Delete")

    assert "5 tasks deleted." in done.text
    assert visitor.store.queries.counts() == {"mail": {"ready": 1}, "default": {"ready": 2}}
    assert visitor.change_log.newest()[0]["subject"] == "tasks that match queue mail"


def test_all_that_match_are_made_to_run(visitor: Visitor) -> None:
    """Running is for those that wait; the others are counted as left alone."""
    for _ in range(3):
        visitor.add(eta_usec=2**61)

    done = visitor.press(visitor.get("/tasks/all"), "Run now")

    assert "3 tasks made to run now." in done.text
    assert len(visitor.store.claim_forced(9)) == 3

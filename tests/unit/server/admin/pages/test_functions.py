"""The pages of functions and time."""

from __future__ import annotations

import pytest

from tests.support.visiting import Visitor
from tests.unit.server.admin.failing import fail


@pytest.mark.parametrize("period", ["hour", "day", "week"])
def test_functions_and_charts(visitor: Visitor, period: str) -> None:
    """Each period has charts, their numbers as a table, and the functions."""
    fail(visitor.store, "one")
    page = visitor.get(f"/functions?period={period}&order=failures&queue=default")
    assert page.html.count("<svg") == 5
    assert "Executed: 1 in all, at most 1 in one span" in page.html
    assert "The numbers as a table" in page.text
    assert "mail/send" in page.text
    assert "style=" not in page.html


def test_a_function_has_its_slowest_attempts(visitor: Visitor) -> None:
    """The page of a function links to the tasks of its slowest attempts."""
    task = fail(visitor.store, "one")
    page = visitor.get("/functions?function=mail/send")
    assert f'href="/tasks/{task}"' in page.html
    visitor.store.operations.delete([task])
    page = visitor.get("/functions?function=mail/send")
    assert f'href="/tasks/{task}"' not in page.html
    assert "deleted" in page.text


def test_pages_without_tasks_are_small(visitor: Visitor) -> None:
    """Even a week without tasks is a small page."""
    page = visitor.get("/functions?period=week")
    assert len(page.body) < 20_000
    assert "Nothing has run" in page.text


@pytest.mark.parametrize("query", ["period=year", "queue=nothing", "function=nothing", "period=%00", "order=name"])
def test_wrong_questions_get_a_sentence(visitor: Visitor, query: str) -> None:
    """Parameters that mean nothing are problems, not tracebacks."""
    assert visitor.ask("GET", f"/functions?{query}").status in (400, 404)

"""Reports of failures, and the pages that show them."""

from __future__ import annotations

import pytest

from deferred_middleware.server.admin.change_log import Actor
from deferred_middleware.server.admin.operation_errors import OperationError
from tests.support.visiting import Visitor
from tests.unit.server.admin.failing import fail

ACTOR = Actor(via="API", who="test")


def test_groups_and_their_tasks_are_reported(visitor: Visitor) -> None:
    """A report has the group's numbers, and the tasks of the group page by page."""
    ids = [fail(visitor.store, f"t{number}") for number in range(3)]
    (group,) = visitor.reports.failures.groups()["failures"]
    assert (group["exception"], group["dead"], group["failing"]) == ("ValueError", 3, 0)
    first = visitor.reports.failures.show(str(group["id"]), limit=2)
    assert [task["id"] for task in first["tasks"]] == [ids[2], ids[1]]
    rest = visitor.reports.failures.show(str(group["id"]), before=first["next_before"])
    assert [task["id"] for task in rest["tasks"]] == [ids[0]]


def test_a_retry_is_in_the_log_of_changes(visitor: Visitor) -> None:
    """A retry of a group wakes the scheduler and is logged."""
    fail(visitor.store, "a")
    group = str(visitor.reports.failures.groups()["failures"][0]["id"])
    assert visitor.reports.failures.retry(ACTOR, group)["retried"] == 1
    assert visitor.woken == 1
    assert visitor.change_log.newest()[0]["subject"] == f"failure {group}"


@pytest.mark.parametrize("group", ["7", "", "x", "-1", "9" * 30, "\u0663"])
def test_unknown_groups_are_refused(visitor: Visitor, group: str) -> None:
    """What is no group gets a sentence."""
    with pytest.raises(OperationError, match="There is no failure"):
        visitor.reports.failures.show(group)


@pytest.mark.parametrize("before", ["x", "1", "1-", "1-2-3", "9" * 30 + "-1"])
def test_wrong_pages_are_refused(visitor: Visitor, before: str) -> None:
    """What is no page gets a sentence."""
    with pytest.raises(OperationError, match="next_before"):
        visitor.reports.failures.groups(before=before)

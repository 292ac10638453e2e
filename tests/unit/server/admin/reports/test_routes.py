"""The reports in the JSON API."""

from __future__ import annotations

import pytest

from deferred_middleware.server.admin.change_log import Actor
from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.reports.routes import find_report
from tests.support.visiting import Visitor
from tests.unit.server.admin.failing import fail


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("failures", {}, "failures"),
        ("failures", {"solved": "1"}, "failures"),
        ("failures/1", {}, "failure"),
        ("functions", {"period": "day"}, "functions"),
        ("functions", {"function": "mail/send"}, "slowest"),
        ("series", {"queue": "default"}, "spans"),
        ("queue-yaml", {}, "queues"),
        ("cron", {}, "entries"),
        ("datastore", {}, "kinds"),
        ("memcache", {"prefix": "x"}, "keys"),
    ],
)
def test_reports_are_found(visitor: Visitor, path: str, query: dict[str, str], field: str) -> None:
    """Each path has its report."""
    fail(visitor.store, "a")
    answer = find_report(visitor.reports, path.split("/"), query)
    assert answer.change is None
    assert field in answer.read()


def test_changes_need_a_post(visitor: Visitor) -> None:
    """A retry of a group, a run of an entry and a preview are changes, which the API takes by POST only."""
    fail(visitor.store, "a")
    actor = Actor(via="API", who="test")
    retry = find_report(visitor.reports, ["failures", "1", "retry"], {}).change
    assert retry is not None
    assert retry(actor, body=dict)["retried"] == 1
    preview = find_report(visitor.reports, ["queue-yaml", "preview"], {}).change
    assert preview is not None
    assert preview(actor, body=lambda: {"text": "queue:\n- name: new\n"})["changes"] == ["Queue new is new."]
    with pytest.raises(OperationError, match="the text 'text'"):
        preview(actor, body=lambda: {"text": 5})
    run = find_report(visitor.reports, ["cron", "0", "run"], {}).change
    assert run is not None
    with pytest.raises(OperationError, match="no entry"):
        run(actor, body=dict)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("failures/1/2/3", {}),
        ("functions", {"colour": "red"}),
        ("failures/1", {"before": "x"}),
        ("datastore", {"kind": "x", "offset": "-1"}),
        ("memcache/x", {}),
    ],
)
def test_what_means_nothing_is_refused(visitor: Visitor, path: str, query: dict[str, str]) -> None:
    """An unknown path or parameter gets a sentence."""
    with pytest.raises(OperationError):
        find_report(visitor.reports, path.split("/"), query).read()

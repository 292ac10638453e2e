"""Reports of queue.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.server.admin.reports.queue_file import text_of
from deferred_middleware.server.config.queue_yaml import parse_queue_yaml
from deferred_middleware.server.store.store import TaskStore
from tests.support.visiting import Visitor

TEXT = """queue:
- name: mail
  rate: 50/s
  max_concurrent_requests: 4
  retry_parameters:
    task_retry_limit: 8
- name: fetch
  mode: pull
"""


def _visitor(store: TaskStore, tmp_path: Path, text: str = TEXT, in_force: str = TEXT) -> Visitor:
    path = tmp_path / "queue.yaml"
    path.write_text(text)
    return Visitor(store, *parse_queue_yaml(in_force, path="x"), queue_yaml=path)


def _value(found: dict[str, Any], queue: str, field: str) -> tuple[str, str]:
    (values,) = (one["values"] for one in found["queues"] if one["name"] == queue)
    (value,) = (one for one in values if one["field"] == field)
    return value["value"], value["origin"]


def test_each_value_says_where_it_comes_from(store: TaskStore, tmp_path: Path) -> None:
    """A value is from a line of the file, the platform's default, or because the queue isn't listed."""
    found = _visitor(store, tmp_path).reports.queue_file.show()
    assert (found["text"], found["error"], found["warnings"]) == (TEXT, None, [])
    assert _value(found, "mail", "rate") == ("50/s", "line 3")
    assert _value(found, "mail", "task_retry_limit") == ("8", "line 6")
    assert _value(found, "mail", "bucket_size") == ("5", "App Engine's default")
    assert _value(found, "default", "rate") == ("no limit", "not listed, so it has no limits here")


def test_a_wrong_file_is_shown_with_its_line(store: TaskStore, tmp_path: Path) -> None:
    """The error has its line, and the values in force are those of before."""
    wrong = TEXT.replace("50/s", "quickly")
    found = _visitor(store, tmp_path, wrong).reports.queue_file.show()
    assert found["error"]["line"] == 3
    assert found["text"] == wrong
    assert _value(found, "mail", "rate") == ("50/s", "not from the file as it is now")


def test_warnings_are_shown_and_not_logged(store: TaskStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What App Engine would not take is shown; looking at the page writes nothing into the log."""
    found = _visitor(store, tmp_path, TEXT.replace("50/s", "900/s")).reports.queue_file.show()
    assert "App Engine takes at most 500/s" in found["warnings"][0]
    assert not caplog.records


def test_without_a_file(store: TaskStore) -> None:
    """There may be no file."""
    found = Visitor(store).reports.queue_file.show()
    assert (found["path"], found["text"], found["error"]) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (TEXT, []),
        (TEXT.replace("50/s", "5/m"), ["Queue mail: rate from 50/s to 5/m."]),
        (TEXT.replace("50/s", "0"), ["Queue mail: rate from 50/s to 0, which pauses it."]),
        (TEXT.replace("    task_retry_limit: 8", "    min_backoff_seconds: 2"), [
            "Queue mail: task_retry_limit from 8 to no limit.",
            "Queue mail: min_backoff_seconds from 0.1 s to 2 s.",
        ]),
        (TEXT.replace("fetch", "other"), [
            "Queue fetch is removed: it takes no new tasks; those that it has run with its present values.",
            "Queue other is new.",
        ]),
    ],
)  # fmt: skip
def test_a_preview_says_what_would_change(store: TaskStore, tmp_path: Path, text: str, changes: list[str]) -> None:
    """Each difference is a sentence, and the file is not written."""
    visitor = _visitor(store, tmp_path)
    assert visitor.reports.queue_file.preview(text)["changes"] == changes
    assert (tmp_path / "queue.yaml").read_text() == TEXT


@pytest.mark.parametrize(
    "text", ["", "queue: 5", "queue:\n- name: a\n  rate: x\n", "\0", "queue:\n- name: a\n- name: a\n"]
)
def test_a_preview_of_a_wrong_text_says_why(store: TaskStore, tmp_path: Path, text: str) -> None:
    """A wrong text gets its error, whatever it is."""
    found = _visitor(store, tmp_path).reports.queue_file.preview(text)
    assert found["error"]["message"]
    assert found["changes"] == []


def test_a_preview_says_how_long_the_backlog_takes(store: TaskStore, tmp_path: Path) -> None:
    """The time depends on the rate; a paused queue never gets there."""
    visitor = _visitor(store, tmp_path)
    for _ in range(25):
        visitor.add(queue="mail")

    def backlog(text: str) -> tuple[float | None, float | None]:
        (one,) = visitor.reports.queue_file.preview(text)["backlogs"]
        return one["before_seconds"], one["after_seconds"]

    assert backlog(TEXT) == (0.4, 0.4)
    assert backlog(TEXT.replace("50/s", "2/s")) == (0.4, 10.0)
    assert backlog(TEXT.replace("50/s", "0")) == (0.4, None)
    assert backlog("queue:\n- name: other\n") == (0.4, 0.4)


def test_values_are_words() -> None:
    """Numbers have units, and what is missing has a meaning."""
    assert [text_of("target", None), text_of("rate_per_second", None), text_of("max_backoff_seconds", 3600.0)] == [
        "that of each task", "no limit", "3600 s",
    ]  # fmt: skip

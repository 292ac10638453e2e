"""The page of cron.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from deferred_middleware.server.admin.reports.cron import CronAnswer
from deferred_middleware.server.store.store import TaskStore
from tests.support.visiting import Visitor

TEXT = "cron:\n- url: /clean\n  schedule: every day 03:30\n  description: <b>clean</b>\n- url: /x\n  schedule: odd\n"


def test_entries_are_shown_and_run(store: TaskStore, tmp_path: Path) -> None:
    """Each entry has its times and a button; its answer is shown afterwards."""
    (tmp_path / "cron.yaml").write_text(TEXT)
    visitor = Visitor(
        store,
        cron_directories=(tmp_path,),
        send_cron=lambda _target, _url: CronAnswer(status=503, seconds=0.2, text="busy"),
    )
    page = visitor.get("/cron")
    assert "&lt;b&gt;clean" in page.html
    assert page.button("Run now /clean").command == "deferred-middleware cron --run 0"
    page = visitor.press(page, "Run now /clean")
    assert "/clean answered with status 503." in page.text
    assert "status 503 200 ms" in page.text


def test_an_entry_that_has_moved_is_not_run(store: TaskStore, tmp_path: Path) -> None:
    """If the file has changed since the page was loaded, nothing runs."""
    (tmp_path / "cron.yaml").write_text(TEXT)
    visitor = Visitor(store, cron_directories=(tmp_path,), send_cron=lambda _t, _u: pytest.fail("it was run"))
    assert visitor.post("/cron/1/run", url="/clean").status == 409


def test_without_a_file(visitor: Visitor) -> None:
    """There may be no file."""
    assert "There is no cron.yaml" in visitor.get("/cron").text

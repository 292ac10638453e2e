"""Everything works without JavaScript."""

from __future__ import annotations

import pytest

from tests.browser.conftest import OpenPage, Site


@pytest.mark.parametrize("scripts", [False, True], ids=["without JavaScript", "with JavaScript"])
def test_a_person_does_everything(own_site: Site, open_page: OpenPage, scripts: bool) -> None:
    """Pause, resume, run, retry, change, select, purge and undo: each by its button, and each says what it did."""
    own_site.call("fill")
    (failed,) = own_site.await_tasks("state=failed", 1)
    page = open_page(own_site.url, java_script_enabled=scripts)

    page.get_by_role("button", name="Pause mail").click()
    assert page.get_by_text("Queue mail is paused.").first.is_visible()
    page.get_by_role("button", name="Resume mail").click()
    assert page.get_by_text("Queue mail runs again.").is_visible()

    page.goto(own_site.url + f"/tasks/{failed['id']}")
    assert page.get_by_text("order 4711: insufficient funds").first.is_visible()
    page.get_by_role("button", name="Compare").click()
    assert page.get_by_text("From attempt 1 to attempt 2").is_visible()
    page.get_by_role("button", name="Retry", exact=True).click()
    assert page.get_by_text(f"Task {failed['id']} is tried again.").is_visible()

    page.goto(own_site.url + "/tasks")
    page.get_by_label("State").select_option("scheduled")
    page.get_by_role("button", name="Search").click()
    page.locator("tr[data-row] input[type=checkbox]").nth(0).check()
    page.locator("tr[data-row] input[type=checkbox]").nth(1).check()
    page.get_by_role("button", name="Delete", exact=True).click()
    assert page.get_by_role("heading", name="Delete: 2 tasks").is_visible()
    page.get_by_role("button", name="Delete").click()
    assert page.get_by_text("2 tasks deleted.").is_visible()
    assert len(own_site.api("tasks?state=scheduled")["tasks"]) == 1

    page.locator("tr[data-row] .call").first.click()
    page.get_by_label("Change the ETA to").fill("2h")
    page.get_by_role("button", name="Change ETA").click()
    assert page.get_by_text("Its ETA is").is_visible()
    page.get_by_role("button", name="Run now").click()
    own_site.await_tasks("function=resize&state=succeeded", 1)

    page.goto(own_site.url)
    page.get_by_role("link", name="Purge still").click()
    page.get_by_label("Type still to confirm").fill("still")
    page.get_by_role("button", name="Delete 3 tasks").click()
    assert page.get_by_text("For ten minutes you can undo that.").is_visible()
    page.get_by_role("button", name="Undo still").click()
    assert page.get_by_text("3 tasks of queue still restored.").is_visible()
    page.get_by_role("button", name="Dark").click()
    assert page.locator("html[data-theme=dark]").count() == 1
    page.goto(own_site.url + "/changes")
    assert page.locator("tr[data-row]").count() >= 6

"""The pages of reports: with and without JavaScript, by keyboard, and with axe."""

from __future__ import annotations

import json
from importlib import resources

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, Site

PATHS = (
    "/failures?solved=1",
    "/failures/1",
    "/failures/77",
    "/functions?period=week",
    "/functions?function=shop/charge",
    "/functions?queue=mail&period=day",
    "/datastore?kind=Nothing",
    "/memcache?prefix=nothing",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
def test_axe_finds_nothing(site: Site, open_page: OpenPage, path: str, scheme: str) -> None:
    """The pages that the menu doesn't lead to meet WCAG 2.2 AA too, and fit into a narrow window."""
    page = open_page(site.url + path, color_scheme=scheme, viewport={"width": 360, "height": 800})
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text())
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)
    assert found["violations"] == [], json.dumps(found["violations"], indent=1)[:3000]
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_failure_is_retried_without_javascript(own_site: Site, open_page: OpenPage) -> None:
    """Without JavaScript, the list leads to a failure, and its button retries all of its tasks."""
    own_site.call("fill")
    own_site.await_tasks("state=failed", 1)
    page = open_page(own_site.url + "/failures", java_script_enabled=False)
    page.get_by_role("link", name="shop.PaymentDeclined").first.click()
    expect(page.locator("main")).to_contain_text("insufficient funds")
    page.get_by_role("button", name="Retry all 2", exact=True).click()
    expect(page.locator(".notice")).to_contain_text("1 dead letter will be tried again")


def test_the_next_attempt_appears_by_itself(own_site: Site, open_page: OpenPage) -> None:
    """After a retry by keyboard alone, the new attempt appears beside the old one without a click."""
    own_site.call("fill")
    own_site.await_tasks("state=failed", 1)
    task = own_site.await_tasks("state=retrying", 1)[0]["id"]
    page = open_page(f"{own_site.url}/failures/1?task={task}")
    expect(page.locator(".beside")).to_have_count(1)
    page.get_by_role("button", name="Retry this task").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".beside")).to_have_count(2)
    expect(page.locator(".beside .frame.mine a").first).to_have_attribute(
        "href", f"vscode://file{own_site.server.directory}/shop.py:12"
    )


def test_keys_move_in_the_list(site: Site, open_page: OpenPage) -> None:
    """The key j moves to the next failure, and Enter opens it."""
    page = open_page(site.url + "/failures")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("shop.PaymentDeclined")


def test_charts_follow_what_happens(own_site: Site, open_page: OpenPage) -> None:
    """The charts and their table change by themselves; the table stays open."""
    page = open_page(own_site.url + "/functions")
    page.get_by_text("The numbers as a table").click()
    own_site.call("fill")
    expect(page.locator("#executed-title + strong")).not_to_have_text("0")
    expect(page.locator("#table-of-charts tbody tr").first).to_be_visible()
    expect(page.get_by_role("link", name="shop/send_welcome")).to_be_visible()
    assert page.locator("svg [style], [style]").count() == 0


@pytest.mark.parametrize("with_script", [True, False])
def test_an_edit_of_queue_yaml_is_previewed(site: Site, open_page: OpenPage, with_script: bool) -> None:
    """The preview says what would change; the file stays as it is."""
    before = (site.server.directory / "queue.yaml").read_text()
    page = open_page(site.url + "/queue-yaml", java_script_enabled=with_script)
    page.get_by_label("A text of queue.yaml").fill("queue:\n- name: mail\n  rate: 1/m\n- name: new\n")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview")).to_contain_text("Queue new is new.")
    expect(page.locator("#preview")).to_contain_text("Queue mail: rate from 100/s to 1/m.")
    page.get_by_label("A text of queue.yaml").fill("queue:\n- name: mail\n  rate: fast\n")
    page.get_by_role("button", name="Preview").click()
    expect(page.locator("#preview")).to_contain_text("The file is wrong in line 3.")
    assert (site.server.directory / "queue.yaml").read_text() == before

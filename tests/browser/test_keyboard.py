"""The keyboard alone is enough."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, Site


def test_the_keys(own_site: Site, open_page: OpenPage) -> None:
    """Search, move, open, run, help, and leave: all by keys."""
    own_site.call("fill")
    own_site.await_tasks("state=scheduled", 3)
    page = open_page(own_site.url + "/tasks")

    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("resize")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks?function=resize**")
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.tagName") == "BODY"

    keys = page.locator("tr[data-row]").evaluate_all("rows => rows.map(row => row.dataset.key)")
    focused = "document.activeElement.closest('tr').dataset.key"
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate(focused) == keys[1]
    page.keyboard.press("k")
    assert page.evaluate(focused) == keys[0]
    page.keyboard.press("r")
    expect(page.get_by_text(f"Task {keys[0]} runs as soon as its service can.")).to_be_visible()
    page.keyboard.press("j")
    opened = page.evaluate(focused)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/tasks/{opened}")

    page.keyboard.press("?")
    expect(page.locator("dialog#keyboard")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog#keyboard")).not_to_be_visible()


def test_the_keys_can_be_switched_off(site: Site, open_page: OpenPage) -> None:
    """People who speak to their computer can switch the keys of one letter off (WCAG 2.1.4)."""
    page = open_page(site.url + "/tasks")
    page.keyboard.press("?")
    page.get_by_label("Use these keys").uncheck()
    page.keyboard.press("Escape")

    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") != "search"
    page.reload()
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.closest('tr')") is None

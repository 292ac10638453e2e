"""Live pages: changes show by themselves, and a server that is gone is said."""

from __future__ import annotations

import time

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, Site


def test_a_change_shows_by_itself(site: Site, open_page: OpenPage) -> None:
    """What somebody else does is on the open page soon, and a selection and the focus stay."""
    page = open_page(site.url + "/tasks?state=scheduled")
    box = page.locator("tr[data-row] input[type=checkbox]").first
    box.check()
    box.focus()
    value = box.get_attribute("value")
    before = page.locator("tr[data-row]").count()
    page.wait_for_timeout(1000)  # the connection is open, and the page is quiet

    began = time.monotonic()
    site.call("more")
    expect(page.locator("tr[data-row]")).to_have_count(before + 1)

    assert time.monotonic() - began < 5
    assert page.locator(f"input[value='{value}']").is_checked()
    assert page.evaluate("document.activeElement.value") == value


def test_a_server_that_is_gone_is_said_once(own_site: Site, open_page: OpenPage) -> None:
    """The page says that the server does not answer, and follows it again when it is back."""
    own_site.call("more")
    page = open_page(own_site.url)
    page.wait_for_timeout(1000)

    own_site.server.kill()
    expect(page.locator("#connection")).to_contain_text("The server does not answer.")
    own_site.server.start()
    expect(page.locator("#connection")).to_have_text("")

    own_site.api("queues/mail/pause", post=True)
    expect(page.get_by_role("button", name="Resume mail")).to_be_visible()
    page.get_by_role("button", name="Resume mail").click()
    expect(page.get_by_text("Queue mail runs again.")).to_be_visible()


def test_a_page_from_before_a_restart_still_works(own_site: Site, open_page: OpenPage) -> None:
    """A form that was loaded before the server was started again is taken."""
    page = open_page(own_site.url, java_script_enabled=False)
    own_site.server.kill()
    own_site.server.start()

    page.get_by_role("button", name="Pause mail").click()

    expect(page.get_by_text("Queue mail is paused.").first).to_be_visible()


def test_a_hidden_page_asks_for_nothing(site: Site, open_page: OpenPage) -> None:
    """While nobody sees the page, its stream is closed; afterwards it is opened again."""
    page = open_page(site.url)
    streams: list[str] = []
    page.on("request", lambda request: streams.append(request.url) if request.url.endswith("/live") else None)
    hide = "hidden => {Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    hide += " document.dispatchEvent(new Event('visibilitychange'))}"

    page.wait_for_timeout(1000)  # the first stream is open
    streams.clear()
    page.evaluate(hide, True)
    site.call("more")
    page.wait_for_timeout(1500)
    assert streams == []
    page.evaluate(hide, False)
    page.wait_for_timeout(1000)
    assert len(streams) == 1

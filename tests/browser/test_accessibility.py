"""Every page, in both schemes: axe finds nothing, and nothing is wider than the window."""

from __future__ import annotations

import json
from importlib import resources

import pytest

from deferred_middleware.server.admin.pages.all_pages import MENU
from tests.browser.conftest import OpenPage, Site

PATHS = (
    *(entry.path for entry in MENU),
    "/tasks?state=scheduled",
    "/tasks?state=nonsense",
    "/tasks?name=nothing-has-this-name",
    "/tasks/all?queue=mail",
    "/keyboard",
    "/queues/mail",
    "/queues/still/purge",
    "/nothing",
    "TASK failed",
    "TASK retrying",
    "TASK scheduled",
)
WIDTHS = (360, 768, 1280, 2560)


def address(site: Site, path: str) -> str:
    """Return the address of a page; ``TASK state`` is the page of a task in this state."""
    if path.startswith("TASK "):
        path = f"/tasks/{site.api('tasks?state=' + path[5:])['tasks'][0]['id']}"
    return site.url + path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
def test_axe_finds_nothing(site: Site, open_page: OpenPage, path: str, scheme: str) -> None:
    """The page meets WCAG 2.2 AA, as far as axe can tell, with all that can be opened open."""
    page = open_page(address(site, path), color_scheme=scheme)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.evaluate((resources.files("axe_playwright_python") / "axe.min.js").read_text())

    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("tags => axe.run(document, {runOnly: tags})", tags)

    assert [
        (one["id"], one["help"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found["violations"]
    ] == [], json.dumps(found["violations"], indent=1)[:3000]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_window(site: Site, open_page: OpenPage, width: int) -> None:
    """From a telephone to a large screen, no page scrolls sideways as a whole."""
    page = open_page(site.url, viewport={"width": width, "height": 900})
    for path in PATHS:
        page.goto(address(site, path))
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path


def test_the_focus_is_visible(site: Site, open_page: OpenPage) -> None:
    """Each element that Tab reaches has an outline."""
    page = open_page(site.url)
    for _ in range(25):
        page.keyboard.press("Tab")
        style = page.evaluate(
            "(() => { const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth] })()"
        )
        assert style[0] != "none", page.evaluate("document.activeElement.outerHTML")
        assert style[1] != "0px"

"""The manual in a browser: it fits a phone, follows the scheme, and is found by search."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser

import deferred_middleware
from tests.support.repository import ROOT

PHONE = {"width": 360, "height": 800}
BUILD_SECONDS = 300
CUT_OFF = """
() => {
    const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    const found = [];
    for (const element of document.querySelectorAll("article *")) {
        let outer = element;
        while (outer.tagName !== "ARTICLE" && !scrolls(outer)) outer = outer.parentElement;
        if (outer.tagName === "ARTICLE" && element.getBoundingClientRect().right > innerWidth + 1)
            found.push(element.outerHTML.slice(0, 100));
    }
    if (document.documentElement.scrollWidth > innerWidth) found.push("the page itself");
    return found.slice(0, 3);
}
"""
"""The theme hides what is too wide, so the elements are measured too; what scrolls in a box of its own is fine."""


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the manual, as ``make docs`` does, without a cache."""
    built = tmp_path_factory.mktemp("manual")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-d", str(built / "doctrees"), "-b", "html"]
    subprocess.run([*command, str(ROOT / "docs"), str(built / "html")], check=True, timeout=BUILD_SECONDS, cwd=ROOT)
    return built / "html"


def test_no_page_of_the_manual_is_wider_than_a_phone(manual: Path, browser: Browser) -> None:
    """At 360 pixels, nothing scrolls sideways as a whole or is cut off; wide tables and code scroll by themselves."""
    context = browser.new_context(viewport=PHONE)  # type: ignore[arg-type] # a dict of this shape
    page = context.new_page()
    wide = {}
    pages = sorted(path for path in manual.rglob("*.html") if "_static" not in path.parts)
    for path in pages:
        page.goto(path.as_uri())
        if found := page.evaluate(CUT_OFF):
            wide[path.relative_to(manual).as_posix()] = found
    context.close()

    assert len(pages) > 40
    assert wide == {}


def test_every_block_of_code_can_be_copied(manual: Path, browser: Browser) -> None:
    """Each block has its button."""
    page = browser.new_page()
    page.goto((manual / "tutorial.html").as_uri())

    assert page.locator("div.highlight").count() > 10
    assert page.locator("div.highlight button.copybtn").count() == page.locator("div.highlight").count()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_and_plots_follow_the_scheme(manual: Path, browser: Browser, scheme: str) -> None:
    """In a dark scheme the background is dark, and each plot is the one for this scheme."""
    context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type] # one of the literals
    page = context.new_page()
    page.goto((manual / "benchmarks.html").as_uri())

    colours = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (int(colours[0]) < 128) is (scheme == "dark")
    shown = page.evaluate(
        "[...document.querySelectorAll('article img')].filter(image => image.offsetWidth).map(image => image.src)"
    )
    assert shown
    assert [source for source in shown if not source.endswith(f"-{scheme}.svg")] == []
    assert page.evaluate("[...document.querySelectorAll('article img')].every(image => image.alt)")
    context.close()


@pytest.mark.parametrize(
    ("word", "title"),
    [("countdown", "Deferring calls"), ("_countdown", "Deferring calls"), ("TaskTooLargeError", "Errors")],
)
def test_search_finds_the_page_of_a_word(manual: Path, browser: Browser, word: str, title: str) -> None:
    """The search lists the page that explains an option or an error."""
    page = browser.new_page()
    page.goto(f"{(manual / 'search.html').as_uri()}?q={word}")
    page.locator("#search-results .search-summary", has_text="found").wait_for()

    assert title in page.locator("#search-results li > a").all_inner_texts()
    page.close()


def test_every_error_has_its_anchor(manual: Path) -> None:
    """The page of errors has the anchor that the manual promises for each public error."""
    found = set(re.findall(r'id="(error-\w+)"', (manual / "errors.html").read_text()))
    public = [name for name in deferred_middleware.__all__ if name.endswith(("Error", "Warning"))]

    assert public
    assert [name for name in public if f"error-{name.lower()}" not in found] == []


def test_llms_txt_lists_every_page(manual: Path) -> None:
    """Each page is in ``llms.txt`` with its title, and each link of it leads to a text."""
    links = re.findall(r"^- \[.+\]\((.+)\)$", (manual / "llms.txt").read_text(), re.MULTILINE)

    assert len(links) == len(list((ROOT / "docs").rglob("*.rst")))
    assert [link for link in links if not (manual / link).is_file()] == []

"""The manual in a browser: it fits a phone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser

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

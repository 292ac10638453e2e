"""Templates: everything that they show is text, and all files are in the wheel."""

from __future__ import annotations

import configparser
import fnmatch
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from deferred_middleware.server.admin.web.rendering import Renderer
from tests.support.repository import ROOT

PAGES = ROOT / "deferred_middleware" / "server" / "admin" / "pages"
FILES = sorted(path.relative_to(PAGES) for folder in ("templates", "static") for path in (PAGES / folder).iterdir())


def test_values_are_text() -> None:
    """A value is escaped, and what would be invisible is shown."""
    renderer = Renderer()
    renderer._environment.loader.mapping["x.html"] = '<p title="{{ value }}">{{ value }}</p>'  # type: ignore[union-attr]

    shown = renderer.render("x.html", {"value": "<b>\"'&\u202e\ud800"})

    text = "&lt;b&gt;&#34;&#39;&amp;\\u202e\\ud800"
    assert shown.decode() == f'<p title="{text}">{text}</p>'


def test_a_missing_value_is_an_error() -> None:
    """A template can't show less than it means to."""
    with pytest.raises(UndefinedError):
        Renderer().render("overview.html", {})


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_of_the_pages_is_in_the_wheel(path: Path) -> None:
    """The packaging includes each template and each static file."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["deferred_middleware.server.admin.pages"].split(",")

    assert any(fnmatch.fnmatch(str(path), pattern.strip()) for pattern in patterns)
    assert not path.name.startswith(".")

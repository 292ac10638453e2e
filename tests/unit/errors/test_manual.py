"""The manual's page of errors: it has every public error, with an anchor and with what to do."""

from __future__ import annotations

import re

import pytest

import deferred_middleware
from deferred_middleware import errors
from deferred_middleware.errors import sdk
from tests.support.manual import made_page
from tests.support.repository import ROOT

PAGE = (ROOT / "docs" / "errors.rst").read_text()


def test_the_manuals_page_is_this_one() -> None:
    """docs/errors.rst is the output of docs/errors_page.py. Run the script after a change of the errors."""
    assert made_page("errors_page") == PAGE


@pytest.mark.parametrize("module", [deferred_middleware, errors, sdk], ids=lambda module: module.__name__)
def test_every_public_error_is_there(module: object) -> None:
    """Each exception that can be imported from the package or its ``errors`` has an anchor, once."""
    anchors = re.findall(r"^\.\. _error-(\w+):$", PAGE, re.MULTILINE)
    # The package imports its names when they are first used.
    values = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    names = {name for name, value in values.items() if isinstance(value, type) and issubclass(value, BaseException)}

    assert "OptionError" in names
    assert names <= set(anchors)
    assert len(anchors) == len(set(anchors))


def test_every_error_has_a_way_out() -> None:
    """Each error of the page says what to do about it, and where to import it from."""
    errors_there = len(re.findall(r"^\.\. _error-\w+:$", PAGE, re.MULTILINE))

    assert PAGE.count("**What to do:**") == errors_there
    assert PAGE.count("Import it from ``deferred_middleware") == errors_there

"""The manual's page of headers and log fields: it is made from the constants, and lists what a record has."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from deferred_middleware import DeferredMiddleware, defer
from deferred_middleware.testing import capture_tasks
from deferred_middleware.wire import protocol
from tests.support import sample
from tests.support.manual import made_module, made_page
from tests.support.repository import ROOT
from tests.support.watching import other_pages


def test_the_manuals_page_is_this_one() -> None:
    """docs/headers.rst is the output of docs/headers_page.py. Run the script after a change of the headers."""
    assert made_page("headers_page") == (ROOT / "docs" / "headers.rst").read_text()


def test_every_header_of_the_library_is_there() -> None:
    """The page has each constant that is the name of a header of the library."""
    names = {
        value
        for name, value in vars(protocol).items()
        if name.endswith("_HEADER") and value.startswith(protocol.OUR_HEADER_PREFIX)
    }
    assert set(made_module("headers_page").ours()) == names


def fails() -> None:
    """Fail."""
    raise ValueError("no")


@pytest.mark.parametrize("call", [sample.note, fails])
def test_the_fields_of_a_record_are_there(call: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The records of a success and of a failure have the fields of the page, in its types."""
    caplog.set_level(logging.DEBUG, "deferred_middleware")
    with capture_tasks(DeferredMiddleware(other_pages)) as tasks:
        defer(call)
        tasks.run(raise_errors=False)

    (facts,) = (record.json_fields["deferred_task"] for record in caplog.records if hasattr(record, "json_fields"))
    fields = made_module("headers_page").FIELDS
    of_a_failure = {name for name, (_, meaning) in fields.items() if meaning.startswith("If it failed")}
    assert set(facts) == set(fields) - (set() if call is fails else of_a_failure)
    types: dict[str, Any] = {"text": str, "number": (int, float), "text or null": (str, type(None))}
    assert [name for name, value in facts.items() if not isinstance(value, types[fields[name][0]])] == []

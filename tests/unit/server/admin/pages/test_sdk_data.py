"""The pages of the datastore and of memcache."""

from __future__ import annotations

from typing import Any

import pytest
from google.appengine.api import memcache

from deferred_middleware.server.admin.reports.sdk_data import DataReports
from tests.support.visiting import Visitor
from tests.unit.server.admin.reports.test_sdk_data import _put, data, stub_map

__all__ = ["data", "stub_map"]


def test_entities_are_shown(visitor: Visitor, data: DataReports) -> None:
    """The kinds lead to entities, and these to their properties."""
    visitor.reports.data = data
    _put("Greeting", "<i>", text="<script>alert(1)</script>", n=5)
    assert "Greeting" in visitor.get("/datastore").text
    page = visitor.get("/datastore?kind=Greeting")
    assert "<script>alert" not in page.html
    (entity,) = data.entities("Greeting")["entities"]
    assert entity["key"] in page.html
    page = visitor.get(f"/datastore?key={entity['key']}&kind=Greeting")
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize("query", ["kind=Nothing", "key=x", "kind=Nothing&offset=99999", "offset=abc", "offset=-1"])
def test_what_is_not_there_gets_a_sentence(visitor: Visitor, data: DataReports, query: str) -> None:
    """Unknown kinds, keys and pages are problems, not tracebacks."""
    visitor.reports.data = data
    assert visitor.ask("GET", f"/datastore?{query}").status in (400, 404)
    # Looking for a kind does not make it.
    assert "The datastore is empty" in visitor.get("/datastore").text


def test_memcache_is_shown(visitor: Visitor, data: DataReports, stub_map: Any) -> None:
    """The page has statistics and keys."""
    visitor.reports.data = data
    assert "Memcache is empty" in visitor.get("/memcache").text
    assert "No key begins so" in visitor.get("/memcache?prefix=x").text
    memcache.set("words", ["<b>", 7])
    memcache.set("text", "plain")
    page = visitor.get("/memcache")
    assert "['<b>', 7]" in page.text
    assert "plain" in page.text

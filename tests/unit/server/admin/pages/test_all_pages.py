"""The menu leads to pages that are there."""

from __future__ import annotations

import pytest

from deferred_middleware.server.admin.pages.all_pages import MENU, ROUTES
from tests.support.visiting import Visitor


@pytest.mark.parametrize("entry", MENU, ids=lambda entry: entry.label)
def test_every_entry_of_the_menu_leads_to_a_page(visitor: Visitor, entry: object) -> None:
    """Each page of the menu answers, marks itself in the menu, and is small without tasks."""
    path, label = entry.path, entry.label  # type: ignore[attr-defined] # a MenuEntry
    page = visitor.get(path)

    assert f'href="{path}" aria-current="page">{label}</a>' in page.html
    assert page.html.count('aria-current="page"') == 1
    assert len(page.body) < 60_000


def test_no_route_hides_another() -> None:
    """Each method and path has one route."""
    keys = [(route.method, route.path) for route in ROUTES]

    assert len(set(keys)) == len(keys)

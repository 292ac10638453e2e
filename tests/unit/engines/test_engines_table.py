"""Tests of the manual's table of what an engine can't do."""

from __future__ import annotations

import importlib.util

from tests.support.engines.apps import ENGINES
from tests.support.engines.cannot import ABILITIES, ENGINE_NAMES
from tests.support.repository import ROOT


def test_the_manuals_table_is_that_of_the_suite() -> None:
    """docs/engines.rst is the output of docs/engines_table.py. Run the script after a change of the table."""
    spec = importlib.util.spec_from_file_location("engines_table", ROOT / "docs" / "engines_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert (ROOT / "docs" / "engines.rst").read_text() == module.page()


def test_each_entry_is_checked_by_the_suite() -> None:
    """The contract suite asks for each ability, and the table has each engine of the suite."""
    suite = "".join(path.read_text() for path in (ROOT / "tests" / "integration").glob("test_engines*.py"))

    assert [name for name in ABILITIES if f'can("{name}")' not in suite] == []
    assert set(ENGINE_NAMES) == set(ENGINES)
    assert {engine for each in ABILITIES.values() for engine in each.cannot} <= set(ENGINES)

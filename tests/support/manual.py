"""The pages of the manual that scripts make."""

from __future__ import annotations

import importlib.util

from tests.support.repository import ROOT


def made_page(script: str) -> str:
    """Return the page that a script of ``docs/`` makes."""
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.page())

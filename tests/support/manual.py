"""The pages of the manual that scripts make."""

from __future__ import annotations

import importlib.util
from typing import Any

from tests.support.repository import ROOT


def made_module(script: str) -> Any:
    """Return a script of ``docs/`` as a module."""
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_page(script: str) -> str:
    """Return the page that a script of ``docs/`` makes."""
    return str(made_module(script).page())

"""Tests of the import of ``deferred_middleware.testing``: its cost and its names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import deferred_middleware
from deferred_middleware import testing


@pytest.mark.parametrize("module", ["deferred_middleware.testing", "deferred_middleware.testing.pytest_plugin"])
def test_importing_it_does_not_import_the_sdk(module: str, tmp_path: Path) -> None:
    """The SDK and the capture are imported only on use, because pytest imports the plugin in every run."""
    code = (
        f"import sys, {module}\n"
        "slow = ('google.appengine', 'google.cloud', 'deferred_middleware.testing.capture')\n"
        "assert not [name for name in sys.modules if name.startswith(slow)]\n"
    )
    package = str(Path(deferred_middleware.__file__).parent.parent)

    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": package}, check=True, timeout=60
    )


def test_each_public_name_is_there() -> None:
    """A name that is imported on first access exists, is listed, and is the same object each time."""
    for name in testing.__all__:
        assert name in dir(testing)
        assert getattr(testing, name) is getattr(testing, name)


def test_a_name_that_is_not_there_is_the_usual_error() -> None:
    """An unknown name raises AttributeError, as with any other module."""
    with pytest.raises(AttributeError, match="has no attribute 'capture_task'"):
        _ = testing.capture_task

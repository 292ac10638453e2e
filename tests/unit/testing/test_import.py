"""Tests of the import of ``deferred_middleware.testing``: its cost and its names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import deferred_middleware
from deferred_middleware import testing


def run(code: str, tmp_path: Path) -> None:
    """Run code in a new interpreter that can import the package."""
    package = str(Path(deferred_middleware.__file__).parent.parent)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DEFERRED_")}
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**environ, "PYTHONPATH": package}, check=True, timeout=60
    )


def test_importing_it_does_not_import_the_sdk(tmp_path: Path) -> None:
    """The SDK and the capture are imported only on use."""
    run(
        "import sys, deferred_middleware.testing\n"
        "slow = ('google.appengine', 'google.cloud', 'deferred_middleware.testing.capture')\n"
        "assert not [name for name in sys.modules if name.startswith(slow)]\n",
        tmp_path,
    )


def test_the_pytest_plugin_imports_nothing_that_pytest_has_not(tmp_path: Path) -> None:
    """Pytest imports the plugin in every run, so it imports no other module: neither the package nor the SDK."""
    run(
        "import sys, pytest\n"
        "before = set(sys.modules)\n"
        "import _deferred_middleware_pytest\n"
        "assert set(sys.modules) - before == {'_deferred_middleware_pytest'}, set(sys.modules) - before\n",
        tmp_path,
    )


@pytest.mark.parametrize("plugin", [True, False])
def test_an_app_under_test_has_a_key(plugin: bool, tmp_path: Path) -> None:
    """With the plugin, importing the package makes a key; without the plugin and the settings, there is none."""
    loads = "import _deferred_middleware_pytest" if plugin else "pass"
    run(
        f"{loads}\n"
        "from deferred_middleware.config.process import current_settings\n"
        f"assert bool(current_settings().secret_keys) is {plugin}\n",
        tmp_path,
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

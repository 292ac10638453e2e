"""The pytest plugin with the fixture ``deferred_tasks``. Once the package is installed, pytest loads it in every run.

So importing it doesn't import the SDK; the fixture does. With the plugin, ``deferred_middleware.testing`` is imported,
which makes the secret key of the process before pytest imports any test module, and any app.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from deferred_middleware.testing import DeferredTasks


@pytest.fixture
def deferred_app() -> object:
    """Return the WSGI app that runs the tasks, or None. Override this fixture, or set ``deferred_tasks.app``."""
    return None


@pytest.fixture
def deferred_tasks(deferred_app: object) -> Iterator[DeferredTasks]:
    """Capture what the test enqueues; see :mod:`deferred_middleware.testing`."""
    from deferred_middleware.testing import capture_tasks

    with capture_tasks(deferred_app) as tasks:  # type: ignore[arg-type] # whatever the user's fixture returns
        yield tasks

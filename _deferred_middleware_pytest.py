"""The pytest plugin with the fixture ``deferred_tasks``. Once the package is installed, pytest loads it in every run.

It is a module outside of the package, so that a run that defers nothing doesn't import the package. When the package is
imported and this module is loaded, it makes a secret key for the tests (:mod:`deferred_middleware.config.process`).
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

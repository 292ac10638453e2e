"""The pytest plugin: the fixture ``deferred_tasks``, which pytest finds by itself once the package is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from deferred_middleware.config.process import make_key_for_tests

if TYPE_CHECKING:
    from deferred_middleware.testing import DeferredTasks


make_key_for_tests()


@pytest.fixture
def deferred_app() -> object:
    """Return the WSGI app that runs tasks, or None. Override it, or set ``deferred_tasks.app``."""
    return None


@pytest.fixture
def deferred_tasks(deferred_app: object) -> Iterator[DeferredTasks]:
    """Capture what the test enqueues; see :mod:`deferred_middleware.testing`."""
    from deferred_middleware.testing import capture_tasks

    with capture_tasks(deferred_app) as tasks:  # type: ignore[arg-type] # whatever the user's fixture returns
        yield tasks

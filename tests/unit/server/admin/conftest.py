"""A visitor of the pages of an empty store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deferred_middleware.server.store.store import TaskStore
from tests.support.visiting import Visitor


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TaskStore]:
    """An empty store."""
    opened = TaskStore(tmp_path / "tasks.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def visitor(store: TaskStore) -> Visitor:
    """A visitor of the pages of the store."""
    return Visitor(store)

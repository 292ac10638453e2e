"""The repository's path, for tests that read its files or start processes that import from it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The folder that has the package and the tests. A process that imports either needs it in ``PYTHONPATH``."""

QUEUE_YAML_FOLDER = Path(__file__).parent / "data"
"""The folder of the ``queue.yaml`` that most tests use: it has the queues ``quick`` and ``slow``, and a pull queue."""

"""The fixtures of the pytest plugin, for ``-p`` where pytest finds no installed plugins."""

from __future__ import annotations

from _deferred_middleware_pytest import deferred_app, deferred_tasks

__all__ = ["deferred_app", "deferred_tasks"]

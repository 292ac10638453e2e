"""Context managers that count or fail the RPCs that add tasks to a queue."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from google.appengine.api import apiproxy_stub_map
from google.appengine.runtime import apiproxy_errors


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """Yield a list that gets, for each RPC that adds tasks, the number of its tasks."""
    found: list[int] = []
    with _hooked(lambda request: found.append(len(request.add_request))):
        yield found


@contextlib.contextmanager
def refused(queue: str) -> Iterator[None]:
    """Make each RPC fail that adds tasks to ``queue``."""

    def refuse(request: Any) -> None:
        if request.add_request[0].queue_name == queue.encode():
            raise apiproxy_errors.OverQuotaError

    with _hooked(refuse):
        yield


@contextlib.contextmanager
def _hooked(look: Callable[[Any], object]) -> Iterator[None]:
    def before(service: str, method: str, request: Any, response: Any) -> None:
        if method == "BulkAdd":
            look(request)

    hooks = apiproxy_stub_map.apiproxy.GetPreCallHooks()
    hooks.Append("look", before, "taskqueue")
    try:
        yield
    finally:
        hooks.Clear()

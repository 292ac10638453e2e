"""What goes to the queue, on its way: counted, or refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from google.appengine.api import apiproxy_stub_map
from google.appengine.runtime import apiproxy_errors


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """Give a list of how many tasks each RPC is about that adds some."""
    found: list[int] = []
    with _hooked(lambda request: found.append(len(request.add_request))):
        yield found


@contextlib.contextmanager
def refused(queue: str) -> Iterator[None]:
    """Let each RPC fail that adds tasks to ``queue``."""

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

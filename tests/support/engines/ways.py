"""The ways to enqueue other than a plain ``defer``: asynchronously, many at once, and in batches."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any

from deferred_middleware import EnqueueFuture, call, defer, defer_async, defer_batch, defer_many

WAIT_SECONDS = 60
Function = Callable[..., object]


def _results(starts: list[Callable[[], EnqueueFuture]]) -> list[Any]:
    return [future.result(WAIT_SECONDS) for future in [start() for start in starts]]


def _get_results(starts: list[Callable[[], EnqueueFuture]]) -> list[Any]:
    return [future.get_result() for future in [start() for start in starts]]


def _awaited(starts: list[Callable[[], EnqueueFuture]]) -> list[Any]:
    async def wait() -> list[Any]:
        first, *others = [start() for start in starts]
        return [await first, *await asyncio.gather(*others)]

    return asyncio.run(wait())


def _yielded(starts: list[Callable[[], EnqueueFuture]]) -> list[Any]:
    from google.appengine.ext import ndb

    @ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
    def wait() -> Any:
        first, *others = [start() for start in starts]
        one = yield first
        rest = yield others
        raise ndb.Return([one, *rest])

    return list(wait().get_result())


def _called_back(starts: list[Callable[[], EnqueueFuture]]) -> list[Any]:
    found = []
    for start in starts:
        decided = threading.Event()
        future = start()
        future.add_done_callback(lambda done, decided=decided: decided.set())  # type: ignore[misc] # of a default
        assert decided.wait(WAIT_SECONDS)
        assert future.done()
        found.append(future.result(0))
    return found


def _forgotten(starts: list[Callable[[], EnqueueFuture]]) -> list[Any]:
    for start in starts:
        start()
    return []


_WAYS = {
    "result": _results,
    "get_result": _get_results,
    "await": _awaited,
    "yield": _yielded,
    "callback": _called_back,
    "forget": _forgotten,
}
WAYS = tuple(_WAYS)


def asynchronously(function: Function, asked: dict[str, Any]) -> dict[str, Any]:
    """Start several enqueues, wait for them in the requested way, and return the tasks' names."""
    starts: list[Callable[[], EnqueueFuture]] = [
        functools.partial(defer_async, function, asked["mark"], number, **asked.get("options", {}))
        for number in range(asked["count"])
    ]
    return {"names": [task.name for task in _WAYS[asked["way"]](starts) if task.was_enqueued]}


def many(function: Function, asked: dict[str, Any]) -> dict[str, Any]:
    """Enqueue many calls; each item of ``options`` belongs to one call."""
    calls = (call(function, asked["mark"], number, **options) for number, options in enumerate(asked["options"]))
    seen: list[int] = []
    report = defer_many(calls, raise_errors=False, progress=lambda report: seen.append(report.enqueued))
    return {
        "statuses": [result.status.value for result in report],
        "reasons": [result.reason for result in report],
        "progress": seen,
    }


def together(function: Function, asked: dict[str, Any]) -> dict[str, Any]:
    """Enqueue calls in a batch, which may raise."""
    with defer_batch():
        defer(function, asked["mark"], 0)
        future = defer_async(function, asked["mark"], 1)
        if asked.get("raises"):
            raise ValueError(asked["mark"])
    return {"names": [future.result(0).name]}


_adds: list[int] = []


def adds(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the number of tasks in each RPC to the task queue that added tasks since the last call."""
    from google.appengine.api import apiproxy_stub_map

    hooks = apiproxy_stub_map.apiproxy.GetPreCallHooks()
    hooks.Append("adds", _count, "taskqueue")  # installed only once, because it has a name
    found = list(_adds)
    _adds.clear()
    return {"adds": found}


def _count(service: str, method: str, request: Any, response: Any) -> None:
    if method == "BulkAdd":
        _adds.append(len(request.add_request))

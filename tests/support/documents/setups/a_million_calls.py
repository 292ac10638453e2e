from typing import Any

from deferred_middleware import DeferredMiddleware


def site(environ: Any, start_response: Any) -> list[bytes]:
    return []


def check(tasks: Any) -> None:
    assert len(tasks.enqueued) == 251
    tasks.app = DeferredMiddleware(site)
    tasks.run_all()
    assert len(tasks.enqueued) == 251 + 250 + 2

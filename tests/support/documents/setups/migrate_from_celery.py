from typing import Any

from deferred_middleware import DeferredMiddleware

sent: list[str] = []
answers = [False, True]


def server_answers() -> bool:
    return answers.pop(0)


def site(environ: Any, start_response: Any) -> list[bytes]:
    return []


def check(tasks: Any) -> None:
    tasks.app = DeferredMiddleware(site)
    tasks.run_all(include_scheduled=True, raise_errors=False)
    assert sent == ["ann"]

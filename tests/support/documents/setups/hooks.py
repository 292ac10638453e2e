from types import SimpleNamespace
from typing import Any

from deferred_middleware import PermanentTaskFailure, defer

recorded: list[str] = []
stored: list[str] = []
histogram = SimpleNamespace(record=lambda seconds, queue, outcome: recorded.append(outcome))


class DeadLetterEntity:
    def __init__(self, label: str, body: bytes, why: str) -> None:
        self.label = label

    def put(self) -> None:
        stored.append(self.label)


def fail() -> None:
    raise PermanentTaskFailure("no")


def site(environ: Any, start_response: Any) -> list[bytes]:
    return []


app = SimpleNamespace(wsgi_app=site)


def check(tasks: Any) -> None:
    tasks.app = app.wsgi_app
    defer(fail)
    tasks.run(raise_errors=False)
    assert stored == ["page/fail"]
    assert recorded == ["permanent-failure"]

from types import SimpleNamespace
from typing import Any

from deferred_middleware import defer

passed: list[str] = []


def Timing(app: Any) -> Any:
    def timed(environ: Any, start_response: Any) -> Any:
        passed.append(environ["PATH_INFO"])
        return app(environ, start_response)

    return timed


def site(environ: Any, start_response: Any) -> list[bytes]:
    return []


app = SimpleNamespace(wsgi_app=site)


def check(tasks: Any) -> None:
    tasks.app = app.wsgi_app
    defer(print, "hello")
    assert tasks.run().status == 200
    assert passed == ["/_cb/deferred/builtins/print"]

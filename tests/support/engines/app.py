"""The app that runs on every engine. Requests of the test make it defer calls; its tasks send notes to the test.

Requests and answers are JSON. Notes are sent to the socket in ``RECORDER``. ``WITHOUT_SDK`` says that there is no SDK.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import logging
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from deferred_middleware import DeferredMiddleware, PermanentTaskFailure, RetryLater, current_task, defer
from deferred_middleware.wire.overflow import sweep
from tests.support.engines import ways

if TYPE_CHECKING or not os.environ.get("WITHOUT_SDK"):
    from tests.support.engines import with_sdk as platform
else:
    from tests.support.engines import without_sdk as platform

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def tell(**told: Any) -> None:
    """Send a note to the test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_the_test:
        to_the_test.sendto(json.dumps(told).encode(), os.environ["RECORDER"])


def record(*args: Any, **kwargs: Any) -> None:
    """Send the arguments, and the task's own properties."""
    task = current_task()
    assert task is not None
    headers = {name: value for name, value in task.environ.items() if name.startswith("HTTP_")}
    tell(
        args=args,
        kwargs=kwargs,
        name=task.name,
        queue=task.queue,
        retry_count=task.retry_count,
        path=task.environ["PATH_INFO"],
        namespace=platform.namespace(),
        host=task.environ.get("HTTP_HOST"),
        headers=headers,
        at=time.time(),
    )


def record_text(text: str, mark: str) -> None:
    """Send the length of the text."""
    tell(args=[len(text), mark])


def record_size(content: bytes, mark: str) -> None:
    """Send the length and the hash of the content."""
    tell(args=[len(content), hashlib.sha256(content).hexdigest(), mark], namespace=platform.namespace())


def fail_first(mark: str, times: int) -> None:
    """Send a note in each attempt, and fail the first ``times`` attempts."""
    task = current_task()
    assert task is not None
    tell(args=[mark, task.retry_count])
    if task.retry_count < times:
        raise ValueError(mark)


def fail_for_good(content: bytes, mark: str) -> None:
    """Send a note, and fail."""
    tell(args=[mark])
    raise PermanentTaskFailure(mark)


def retry_later(content: bytes, mark: str, times: int) -> None:
    """Send a note in each attempt, and raise RetryLater ``times`` times."""
    task = current_task()
    assert task is not None
    tell(
        args=[len(content), hashlib.sha256(content).hexdigest(), mark, task.attempt],
        name=task.name,
        namespace=platform.namespace(),
        colour=task.environ.get("HTTP_X_COLOUR"),
        is_last_attempt=task.is_last_attempt,
    )
    if task.attempt <= times:
        if not os.environ.get("WITHOUT_SDK"):
            platform.in_namespace("of-the-call").__enter__()
        raise RetryLater(0.05)


class _Telling(logging.Handler):
    """Sends a note for each logged error."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(args=[record.getMessage()], level=record.levelname)


logging.getLogger("deferred_middleware").addHandler(_Telling(logging.ERROR))


def _defer(asked: dict[str, Any]) -> dict[str, Any]:
    """Defer a call, in a transaction if the request says so."""
    function: Callable[..., None] = globals()[asked["function"]]
    args = list(asked.get("args", ()))
    if "random_bytes" in asked:
        content = os.urandom(asked["random_bytes"])
        args.insert(0, content)
    options = dict(asked.get("options", {}))
    if "eta_seconds" in options:
        eta = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=options.pop("eta_seconds"))
        options["_eta"] = eta
    answer: dict[str, Any] = {}
    if "random_bytes" in asked:
        answer["sha256"] = hashlib.sha256(content).hexdigest()

    def work() -> None:
        if asked.get("write"):
            platform.put_note(asked["transaction"], asked["write"])
        for _ in range(asked.get("times", 1)):
            task = defer(function, *args, **options)
            answer.update(name=task.name, queue=task.queue_name, was_enqueued=task.was_enqueued)
        if asked.get("kill_me"):
            tell(pid=os.getpid())
            threading.Event().wait()  # the process is killed here, before the commit
        if asked.get("rollback"):
            raise platform.rollback(asked["transaction"])

    with platform.in_namespace(asked.get("namespace", "")), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if asked.get("transaction"):
            platform.run(asked["transaction"], work, xg=asked.get("xg", True))
        else:
            work()
    answer["warnings"] = [str(each.message) for each in warned]
    return answer


def _conflict(asked: dict[str, Any]) -> dict[str, Any]:
    """Defer a call in a transaction whose first two attempts conflict with another transaction."""
    attempts: list[int] = []
    mark = asked["mark"]

    def attempt(change_it_elsewhere: Callable[[], object]) -> None:
        attempts.append(1)
        defer(record_size, os.urandom(asked["random_bytes"]), f"{mark} {len(attempts)}", _transactional=True)
        if len(attempts) < 3:
            change_it_elsewhere()

    platform.conflict(asked["transaction"], mark, attempt)
    return {"attempts": len(attempts)}


def _batch(asked: dict[str, Any]) -> dict[str, Any]:
    """Add tasks, and then delete, count and purge them with the SDK."""
    return platform.batch(record, asked)


def _payloads(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the number of payload chunks and entities in the datastore."""
    found = platform.payloads()
    return {"chunks": sum(found), "entities": len(found)}


def _exists(asked: dict[str, Any]) -> dict[str, Any]:
    """Return whether the entity that the transaction writes exists."""
    return {"exists": platform.has_note(asked["write"])}


def _sweep(asked: dict[str, Any]) -> dict[str, Any]:
    """Make every payload expire, and sweep."""
    platform.expire_payloads()
    return {"removed": sweep()}


def _modules(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the names of the SDK's modules that are imported."""
    return {"modules": [name for name in sys.modules if name.split(".")[:2] == ["google", "appengine"]]}


_ROUTES = {
    f"/{function.__name__.lstrip('_')}": function
    for function in (_defer, _conflict, _batch, _payloads, _exists, _sweep, _modules, platform.post, ways.adds)
}
for _way in (ways.asynchronously, ways.many, ways.together):
    _ROUTES[f"/{_way.__name__}"] = functools.partial(_way, record)


def plain_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request of the test."""
    answer: dict[str, Any]
    try:
        asked = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or b"{}")
        with platform.in_namespace(""):
            answer = _ROUTES[environ["PATH_INFO"]](asked)
    except Exception as error:  # noqa: BLE001 - the test gets the error as the answer
        kinds = [f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__]
        answer = {"error": kinds, "message": str(error)}
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def tenant_of_the_host(app: WSGIApplication) -> WSGIApplication:
    """Set a namespace for each request, as multi-tenant apps do; it differs from the task's namespace."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with platform.in_namespace("of-the-host"):
            return app(environ, start_response)

    return answer


app = platform.wrap(tenant_of_the_host(DeferredMiddleware(plain_app)))

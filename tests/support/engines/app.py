"""The app that runs on every engine. Requests of the test make it defer calls; its tasks send notes to the test.

Requests and answers are JSON. Notes are sent to the socket in ``RECORDER``.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import json
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from google.appengine.api import datastore, namespace_manager, taskqueue, wrap_wsgi_app
from google.appengine.ext import db, ndb
from google.appengine.ext.deferred import PermanentTaskFailure

from deferred_middleware import DeferredMiddleware, RetryLater, call, current_task, defer
from deferred_middleware.enqueue.api import enqueue
from deferred_middleware.wire import overflow
from deferred_middleware.wire.overflow import sweep
from tests.support.engines import ways

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def tell(**told: Any) -> None:
    """Send a note to the test."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to_the_test:
        to_the_test.sendto(json.dumps(told).encode(), os.environ["RECORDER"])


class Note(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """An entity for transactions of ndb."""

    count = ndb.IntegerProperty(default=0)


class DbNote(db.Model):  # type: ignore[misc] # the SDK has no types
    """An entity for transactions of db."""

    count = db.IntegerProperty(default=0)


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
        namespace=namespace_manager.get_namespace(),
        host=task.environ.get("HTTP_HOST"),
        headers=headers,
        at=time.time(),
    )


def record_text(text: str, mark: str) -> None:
    """Send the length of the text."""
    tell(args=[len(text), mark])


def record_size(content: bytes, mark: str) -> None:
    """Send the length and the hash of the content."""
    tell(args=[len(content), hashlib.sha256(content).hexdigest(), mark], namespace=namespace_manager.get_namespace())


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
        namespace=namespace_manager.get_namespace(),
        colour=task.environ.get("HTTP_X_COLOUR"),
        is_last_attempt=task.is_last_attempt,
    )
    if task.attempt <= times:
        namespace_manager.set_namespace("of-the-call")
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
            (Note(id=asked["write"]) if asked["transaction"] == "ndb" else DbNote(key_name=asked["write"])).put()
        for _ in range(asked.get("times", 1)):
            task = defer(function, *args, **options)
            answer.update(name=task.name, queue=task.queue_name, was_enqueued=task.was_enqueued)
        if asked.get("kill_me"):
            tell(pid=os.getpid())
            threading.Event().wait()  # the process is killed here, before the commit
        if asked.get("rollback"):
            raise ndb.Rollback if asked["transaction"] == "ndb" else db.Rollback

    namespace_manager.set_namespace(asked.get("namespace", ""))
    xg = asked.get("xg", True)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        if asked.get("transaction") == "ndb":
            ndb.transaction(work, xg=xg)
        elif asked.get("transaction") == "db":
            db.run_in_transaction_options(db.create_transaction_options(xg=xg), work)
        else:
            work()
    answer["warnings"] = [str(each.message) for each in warned]
    return answer


def _conflict(asked: dict[str, Any]) -> dict[str, Any]:
    """Defer a call in a transaction whose first two attempts conflict with another transaction."""
    attempts: list[int] = []
    of_ndb = asked["transaction"] == "ndb"
    mark = asked["mark"]

    def note() -> Any:
        return Note.get_or_insert(mark) if of_ndb else DbNote.get_or_insert(mark)

    def other() -> None:
        theirs = Note.get_by_id(mark) if of_ndb else DbNote.get_by_key_name(mark)
        theirs.count += 10
        theirs.put()

    def work() -> None:
        attempts.append(1)
        mine = Note.get_by_id(mark) if of_ndb else DbNote.get_by_key_name(mark)
        defer(record_size, os.urandom(asked["random_bytes"]), f"{mark} {len(attempts)}", _transactional=True)
        if len(attempts) < 3:
            if of_ndb:
                ndb.transaction(other, propagation=ndb.TransactionOptions.INDEPENDENT)
            else:
                db.run_in_transaction_options(db.create_transaction_options(propagation=db.INDEPENDENT), other)
        mine.count += 1
        mine.put()

    note()
    if of_ndb:
        ndb.transaction(work, xg=True)
    else:
        db.run_in_transaction_options(db.create_transaction_options(xg=True), work)
    return {"attempts": len(attempts)}


def _batch(asked: dict[str, Any]) -> dict[str, Any]:
    """Add tasks, and then delete, count and purge them with the SDK."""
    queue = taskqueue.Queue(asked["queue"])
    tasks = [enqueue(call(record, name, _name=name, _queue=asked["queue"], _countdown=3600)) for name in asked["names"]]
    deleted = queue.delete_tasks_by_name([*asked["names"][:1], "never-was"])
    counted = queue.fetch_statistics().tasks if asked["count"] else None
    queue.purge()
    return {
        "added": [task.name for task in tasks],
        "deleted": [task.was_deleted for task in deleted],
        "counted": counted,
    }


def _payloads(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the number of payload chunks and entities in the datastore."""
    found = list(datastore.Query(overflow.KIND, namespace="").Run())
    return {"chunks": sum("data" in entity for entity in found), "entities": len(found)}


def _exists(asked: dict[str, Any]) -> dict[str, Any]:
    """Return whether the entity that the transaction writes exists."""
    return {"exists": Note.get_by_id(asked["write"]) is not None or DbNote.get_by_key_name(asked["write"]) is not None}


def _sweep(asked: dict[str, Any]) -> dict[str, Any]:
    """Make every payload expire, and sweep."""
    found = list(datastore.Query(overflow.KIND, namespace="").Run())
    for entity in found:
        entity["expires"] -= datetime.timedelta(days=70)
    datastore.Put(found)
    return {"removed": sweep()}


def _post(asked: dict[str, Any]) -> dict[str, Any]:
    """Add a task with a base64-encoded payload, to test how payloads that aren't ours are handled."""
    task = taskqueue.Task(url=asked["url"], payload=base64.b64decode(asked["body"]), headers=asked.get("headers", {}))
    return {"name": task.add(asked.get("queue", "default")).name}


_ROUTES = {
    f"/{function.__name__.lstrip('_')}": function
    for function in (_defer, _conflict, _batch, _payloads, _exists, _sweep, _post, ways.adds)
}
for _way in (ways.asynchronously, ways.many, ways.together):
    _ROUTES[f"/{_way.__name__}"] = functools.partial(_way, record)


def plain_app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request of the test."""
    answer: dict[str, Any]
    namespace_manager.set_namespace("")
    try:
        asked = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)) or b"{}")
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
        namespace_manager.set_namespace("of-the-host")
        return app(environ, start_response)

    return answer


app = wrap_wsgi_app(tenant_of_the_host(DeferredMiddleware(plain_app)))

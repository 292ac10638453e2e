"""What the app of the engines needs of App Engine's SDK: transactions, namespaces, the datastore and raw tasks."""

from __future__ import annotations

import base64
import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from google.appengine.api import datastore, namespace_manager, taskqueue, wrap_wsgi_app
from google.appengine.ext import db, ndb

from deferred_middleware import call
from deferred_middleware.enqueue.api import enqueue
from deferred_middleware.wire import overflow

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class Note(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """An entity for transactions of ndb."""

    count = ndb.IntegerProperty(default=0)


class DbNote(db.Model):  # type: ignore[misc] # the SDK has no types
    """An entity for transactions of db."""

    count = db.IntegerProperty(default=0)


def namespace() -> str:
    """Return the current namespace."""
    return str(namespace_manager.get_namespace())


@contextlib.contextmanager
def in_namespace(name: str) -> Iterator[None]:
    """Set the namespace. As in many apps, nobody restores the one before."""
    namespace_manager.set_namespace(name)
    yield


def put_note(transaction: str, mark: str) -> None:
    """Write an entity in the current transaction."""
    (Note(id=mark) if transaction == "ndb" else DbNote(key_name=mark)).put()


def has_note(mark: str) -> bool:
    """Tell whether the entity exists."""
    return Note.get_by_id(mark) is not None or DbNote.get_by_key_name(mark) is not None


def rollback(transaction: str) -> Exception:
    """Return the exception that rolls the transaction back quietly."""
    return ndb.Rollback() if transaction == "ndb" else db.Rollback()  # type: ignore[no-any-return]


def run(transaction: str, work: Callable[[], object], *, xg: bool) -> None:
    """Run a function in a transaction."""
    if transaction == "ndb":
        ndb.transaction(work, xg=xg)
    else:
        db.run_in_transaction_options(db.create_transaction_options(xg=xg), work)


def conflict(transaction: str, mark: str, attempt: Callable[[Callable[[], object]], object]) -> None:
    """Run ``attempt`` in a transaction that changes an entity; its argument changes the same entity in another one."""
    of_ndb = transaction == "ndb"

    def other() -> None:
        theirs = Note.get_by_id(mark) if of_ndb else DbNote.get_by_key_name(mark)
        theirs.count += 10
        theirs.put()

    def run_other() -> None:
        if of_ndb:
            ndb.transaction(other, propagation=ndb.TransactionOptions.INDEPENDENT)
        else:
            db.run_in_transaction_options(db.create_transaction_options(propagation=db.INDEPENDENT), other)

    def work() -> None:
        mine = Note.get_by_id(mark) if of_ndb else DbNote.get_by_key_name(mark)
        attempt(run_other)
        mine.count += 1
        mine.put()

    Note.get_or_insert(mark) if of_ndb else DbNote.get_or_insert(mark)
    run(transaction, work, xg=True)


def payloads() -> list[bool]:
    """Return for each entity of a payload whether it is a chunk."""
    return ["data" in entity for entity in datastore.Query(overflow.KIND, namespace="").Run()]


def expire_payloads() -> None:
    """Make every payload expire."""
    found = list(datastore.Query(overflow.KIND, namespace="").Run())
    for entity in found:
        entity["expires"] -= datetime.timedelta(days=70)
    datastore.Put(found)


def batch(record: Callable[..., object], asked: dict[str, Any]) -> dict[str, Any]:
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


def post(asked: dict[str, Any]) -> dict[str, Any]:
    """Add a task with a base64-encoded payload, to test how payloads that aren't ours are handled."""
    task = taskqueue.Task(url=asked["url"], payload=base64.b64decode(asked["body"]), headers=asked.get("headers", {}))
    return {"name": task.add(asked.get("queue", "default")).name}


def wrap(app: WSGIApplication) -> WSGIApplication:
    """Return the app in the layer that the platform needs."""
    wrapped: WSGIApplication = wrap_wsgi_app(app)
    return wrapped

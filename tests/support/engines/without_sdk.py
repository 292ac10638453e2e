"""What the app of the engines needs where there is no SDK: google-cloud-ndb in its place."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from google.cloud import ndb
from google.cloud.ndb import context as context_module

from deferred_middleware.wire import entities, overflow

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class Note(ndb.Model):  # type: ignore[misc] # it has no types
    """An entity for transactions."""

    count = ndb.IntegerProperty(default=0)


_client = ndb.Client()


def namespace() -> str:
    """Return the current namespace."""
    return str(context_module.get_context().get_namespace() or "")


@contextlib.contextmanager
def in_namespace(name: str) -> Iterator[None]:
    """Run a block in a context with a namespace."""
    with context_module.get_context().new(namespace=name).use() as context:
        yield
        context.eventloop.run()


def put_note(transaction: str, mark: str) -> None:
    """Write an entity in the current transaction."""
    Note(id=mark).put()


def has_note(mark: str) -> bool:
    """Tell whether the entity exists."""
    return ndb.Key(Note, mark).get(use_cache=False) is not None


def rollback(transaction: str) -> Exception:
    """Return an exception that rolls the transaction back."""
    return ZeroDivisionError()


def run(transaction: str, work: Callable[[], object], *, xg: bool) -> None:
    """Run a function in a transaction."""
    with contextlib.suppress(ZeroDivisionError):
        ndb.transaction(work)


def conflict(transaction: str, mark: str, attempt: Callable[[Callable[[], object]], object]) -> None:
    """Run ``attempt`` in a transaction that changes an entity; its argument changes the same entity in another one."""

    def run_other() -> None:
        with context_module.Context(_client, namespace="").use() as context:
            theirs = ndb.Key(Note, mark).get()
            theirs.count += 10
            theirs.put()
            context.eventloop.run()

    def work() -> None:
        mine = ndb.Key(Note, mark).get()
        attempt(run_other)
        mine.count += 1
        mine.put()

    Note(id=mark).put()
    ndb.transaction(work)


def payloads() -> list[bool]:
    """Return for each entity of a payload whether it is a chunk."""
    return ["data" in entity.properties for entity in _payloads()]


def _payloads() -> list[entities.StoredEntity]:
    later = datetime.datetime(2100, 1, 1)
    return entities.datastore().older_than(overflow.KIND, overflow.EXPIRES, later, limit=1000)


def expire_payloads() -> None:
    """Make every payload expire."""
    expired = {overflow.EXPIRES: datetime.datetime(2020, 1, 1)}
    changed = [entities.StoredEntity(path=each.path, properties={**each.properties, **expired}) for each in _payloads()]
    entities.datastore().put(changed)


def batch(record: Callable[..., object], asked: dict[str, Any]) -> dict[str, Any]:
    """Fail: the SDK's own calls need the SDK."""
    raise NotImplementedError


def post(asked: dict[str, Any]) -> dict[str, Any]:
    """Fail: raw tasks are added with the SDK."""
    raise NotImplementedError


def wrap(app: WSGIApplication) -> WSGIApplication:
    """Return the app in a layer that enters the client's context."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with _client.context():
            return app(environ, start_response)

    return answer

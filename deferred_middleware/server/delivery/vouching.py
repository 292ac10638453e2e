"""Sign tasks for the app: those that were enqueued without a signature, and those that a person moves.

Only an app of this server can enqueue a task here, because the API asks for its ticket. A task of
``google.appengine.ext.deferred`` is not signed all the same, and nothing but a signature proves to an app that a
request comes from the queue. So the server signs such a task when it delivers it, with the key of the service.

A signature is for one queue. If a person moves a task, its signature is checked and replaced by one for the new queue.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from deferred_middleware.errors import UntrustedRequestError
from deferred_middleware.server.config.data_dir import SECRET_KEYS_VARIABLE
from deferred_middleware.server.config.queues import queue_id
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.store.records import ClaimedTask, Headers, StoredTask
from deferred_middleware.wire import protocol
from deferred_middleware.wire.signature import Keyring, digest_of, expiry_of, path_of

REQUIRED_VARIABLE: Final = "DEFERRED_REQUIRE_SIGNATURE"
LIFETIME_SECONDS: Final = 3600.0
"""How long a signature is valid. Each attempt has its own, so this is the time to reach the app."""

_OUR_PREFIX: Final = protocol.OUR_HEADER_PREFIX.lower()
_SIGNATURE: Final = protocol.SIGNATURE_HEADER.lower()


class _Key(str):
    __slots__ = ()

    def to_bytes(self) -> bytes:
        """Return the bytes that the variable has in the environment of the process."""
        return self.encode("utf-8", "surrogateescape")


class Voucher:
    """Signs tasks for the app ``application``. ``environs`` are the environments of the services, by their IDs.

    A service that requires signatures gets none from the server: there, as on App Engine, a task that was enqueued
    without a signature is refused.
    """

    def __init__(self, environs: Mapping[str, Mapping[str, str]], *, application: str) -> None:
        keys = {service: _keys_of(environ) for service, environ in environs.items()}
        self._all_keyrings = {service: Keyring(own, application) for service, own in keys.items() if own}
        self._keyrings = {
            service: Keyring(keys[service][:1], application)
            for service in self._all_keyrings
            if environs[service].get(REQUIRED_VARIABLE, "").strip().lower() not in ("true", "1")
        }

    def signature(self, task: ClaimedTask, service: Service) -> str | None:
        """Return the signature for a task without one; None if it has one, or can't be a deferred call.

        A deferred call is posted, without a query. If a task has any of our headers, our library has enqueued it and
        has signed it if it could. Whoever reaches the port of the Cloud Tasks API can create a task there, so the
        server vouches for none of these.
        """
        if task.origin is not None or task.method != "POST" or "?" in task.url or "#" in task.url:
            return None
        if any(name.lower().replace("_", "-").startswith(_OUR_PREFIX) for name, _value in task.headers):
            return None
        keyring = self._keyrings.get(service.id)
        if keyring is None:
            return None
        now = time.time()
        return keyring.sign(
            path=path_of(task.url),
            queue=task.queue,
            name=task.name,
            headers={},
            body=task.body,
            not_before=now,
            lifetime_seconds=LIFETIME_SECONDS,
            now=now,
        )

    def moved(self, task: StoredTask, queue: str, service: str | None) -> Headers:
        """Return the headers of a task for another queue, with a signature for that queue if it had one.

        ``service`` runs the task there; None if no service does. Raises :class:`UntrustedRequestError` if the task's
        signature is not valid, or can't be made anew.
        """
        signature = next((value for name, value in task.headers if name.lower() == _SIGNATURE), None)
        if signature is None:
            return task.headers
        ours = {name: value for name, value in task.headers if _is_signed(name)}
        now = time.time()
        self._check(task, signature, ours, now)
        keyring = self._all_keyrings.get(service or "")
        if keyring is None:
            raise UntrustedRequestError("signature-key", "no key of the service that runs it there is known")
        made = keyring.sign(
            path=path_of(task.url),
            queue=queue_id(queue),
            name=task.name,
            headers={name: value.encode("latin-1").decode() for name, value in ours.items()},
            body=task.body,
            not_before=now,
            lifetime_seconds=max(0.0, expiry_of(signature) - now),
            now=now,
        )
        return tuple((name, made if name.lower() == _SIGNATURE else value) for name, value in task.headers)

    def _check(self, task: StoredTask, signature: str, ours: Mapping[str, str], now: float) -> None:
        """Raise :class:`UntrustedRequestError` if no service would accept a task."""
        path, _, query = task.url.partition("?")
        environ = {
            "REQUEST_METHOD": task.method,
            "PATH_INFO": path_of(path).decode("latin-1"),
            "QUERY_STRING": query,
            **{protocol.environ_key(name): value for name, value in ours.items()},
        }
        problem = UntrustedRequestError("signature-key", "its signature was made with an unknown key")
        for keyring in self._all_keyrings.values():
            try:
                if keyring.verify(signature, environ, queue_id(task.queue), task.name, now) == digest_of(task.body):
                    return
                problem = UntrustedRequestError("signature", "its signature does not match its payload")
            except UntrustedRequestError as error:
                problem = error
        raise problem


def _keys_of(environ: Mapping[str, str]) -> list[_Key]:
    return [_Key(key) for part in environ.get(SECRET_KEYS_VARIABLE, "").split(",") if (key := part.strip())]


def _is_signed(name: str) -> bool:
    return name.lower().startswith(_OUR_PREFIX) and name.lower() != _SIGNATURE

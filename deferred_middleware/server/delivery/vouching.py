"""Sign the tasks that were enqueued without a signature, so that the app knows that the server sent them.

Only an app of this server can enqueue a task here, because the API asks for its ticket. A task of
``google.appengine.ext.deferred`` is not signed all the same, and nothing but a signature proves to an app that a
request comes from the queue. So the server signs such a task when it delivers it, with the key of the service.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from deferred_middleware.server.config.data_dir import SECRET_KEYS_VARIABLE
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.store.records import ClaimedTask
from deferred_middleware.wire import protocol
from deferred_middleware.wire.signature import Keyring, path_of

REQUIRED_VARIABLE: Final = "DEFERRED_REQUIRE_SIGNATURE"
LIFETIME_SECONDS: Final = 3600.0
"""How long a signature is valid. Each attempt has its own, so this is the time to reach the app."""

_OUR_PREFIX: Final = protocol.OUR_HEADER_PREFIX.lower()


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
        self._keyrings = {
            service: Keyring([_Key(environ[SECRET_KEYS_VARIABLE].partition(",")[0].strip())], application)
            for service, environ in environs.items()
            if environ.get(SECRET_KEYS_VARIABLE, "").strip()
            and environ.get(REQUIRED_VARIABLE, "").strip().lower() not in ("true", "1")
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

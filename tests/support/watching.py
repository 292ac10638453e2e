"""Helpers of the forged-request tests: an audit of imports and unpickling, and an app that signs its own tasks."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Iterator
from typing import Any

from deferred_middleware import DeferredMiddleware, Settings
from deferred_middleware.config import process
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.process import Deployment
from deferred_middleware.wire import protocol
from deferred_middleware.wire.signature import Keyring

KEY = SecretKey("k" * 40)
SIGNATURE = protocol.environ_key(protocol.SIGNATURE_HEADER)
NAME = protocol.environ_key(protocol.TASK_NAME_HEADER)
QUEUE = protocol.environ_key(protocol.QUEUE_NAME_HEADER)
USER_IP = protocol.environ_key(protocol.USER_IP_HEADER)

_EVENTS = frozenset(
    {"import", "exec", "compile", "marshal.loads", "pickle.find_class", "os.system", "subprocess.Popen", "open"}
)
_watched = threading.local()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    seen = getattr(_watched, "seen", None)
    if seen is not None and event in _EVENTS:
        seen.append((event, repr(args)[:100]))


_installed = False


@contextlib.contextmanager
def watch() -> Iterator[list[tuple[str, str]]]:
    """Yield a list that records what this thread imports, unpickles, compiles, executes and opens."""
    global _installed
    if not _installed:
        sys.addaudithook(_hook)  # permanent: an audit hook can't be removed
        _installed = True
    seen: list[tuple[str, str]] = []
    _watched.seen = seen
    try:
        yield seen
    finally:
        _watched.seen = None


def other_pages(environ: Any, start_response: Any) -> list[bytes]:
    """Stand for the app, which has no pages."""
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"no such page\n"]


def middleware(environment: str | None, *, keys: tuple[str, ...] = (), required: bool = False) -> DeferredMiddleware:
    """Return the middleware as it is configured on App Engine standard (``standard``) or elsewhere."""
    process._deployment = Deployment(environment=environment, application="app")
    settings = Settings(secret_keys=keys, require_signature=required)  # type: ignore[arg-type]
    return DeferredMiddleware(other_pages, settings=settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signed:
    """The data that a signature covers."""

    path: bytes = b"/_cb/deferred/tests.support.sample/note"
    queue: str = "default"
    name: str | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    not_before: float = 0.0
    lifetime_seconds: float = 3600.0
    now: float

    def with_key(self, key: SecretKey, application: str = "app") -> str:
        """Return the signature."""
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Keyring([key], application).sign(**facts)

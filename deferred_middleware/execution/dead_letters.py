"""Dead letters: what is kept of a task that will not be tried again, and how it is run again by hand.

The log has a line for each with all that takes, unless the arguments are not to be logged. :func:`replay`, and the
command ``deferred-middleware replay``, enqueue the task anew from that line, if its signature is one of ours.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.calls import headers as carrying
from deferred_middleware.calls.options import Options
from deferred_middleware.config.settings import current_deployment, current_settings
from deferred_middleware.errors import DeferredError, UntrustedRequestError
from deferred_middleware.wire import protocol
from deferred_middleware.wire import signature as signing

if TYPE_CHECKING:
    from google.appengine.api import taskqueue

    from deferred_middleware.config.settings import Settings
    from deferred_middleware.execution.outcomes import DeadLetter

MARK: Final = "dead letter: "
"""What stands before the JSON in the log's line."""

_SIGNATURE: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)
_OURS: Final = protocol.environ_key(protocol.OUR_HEADER_PREFIX)
# They tell of the task that has ended, not of the call.
_NOT_AGAIN: Final = frozenset(
    protocol.environ_key(header) for header in (protocol.SIGNATURE_HEADER, protocol.EARLIER_ATTEMPTS_HEADER)
)
_NOT_KEPT: Final = frozenset({_SIGNATURE, protocol.environ_key(protocol.SERVER_TOKEN_HEADER)})
# In the place of a request's: whoever reads the log can't post what is signed so as a task.
_METHOD: Final = "REPLAY"


class ReplayError(DeferredError, ValueError):
    """A dead letter can't be enqueued again: it is none, or nobody of ours has signed it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What is kept of a dead letter."""

    text: str
    """All that is needed to run it again, as one line of JSON."""
    is_signed: bool
    """Whether :func:`replay` can verify it."""


def record(letter: DeadLetter, settings: Settings) -> Record:
    """Return what is to be kept of a dead letter.

    It has a signature of its own, if there is a key, which serves :func:`replay` and nothing else; the task's own one,
    with which it could be posted again, is not in it.
    """
    context = letter.context
    environ = context.environ
    deployment = current_deployment()
    headers = {key: str(value) for key, value in environ.items() if key.startswith(_OURS) and key not in _NOT_KEPT}
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    keyring = signing.keyring_for(settings.secret_keys, deployment.application)
    if keyring:
        headers[_SIGNATURE] = keyring.sign(
            path=path.encode("latin-1"),
            queue=context.queue,
            name=context.name,
            headers={_header(key): value for key, value in headers.items()},
            body=letter.body,
            not_before=0.0,
            lifetime_seconds=signing.LIFETIME_SECONDS,
            now=time.time(),
            method=_METHOD,
        )
    for name, value in carrying.options_in(environ)["headers"].items():
        if protocol.environ_key(name) not in protocol.SECRET_ENVIRON_KEYS:
            headers[protocol.environ_key(name)] = value
    text = json.dumps(
        {
            "path": path,
            "queue": context.queue,
            "name": context.name,
            "service": context.service,
            "application": deployment.application,
            "headers": headers,
            "body": base64.b64encode(letter.body).decode(),
            "reason": letter.reason,
        }
    )
    return Record(text=text, is_signed=_SIGNATURE in headers)


def replay(line: str, *, queue: str | None = None, target: str | None = None) -> taskqueue.Task:
    """Enqueue a dead letter again, as a new task with attempts of its own; return it.

    It keeps its retry options, its dispatch deadline, its cap of attempts and its caller's own headers, but for
    cookies and credentials, which no log has.

    Args:
        line: the line of the log, or the JSON in it.
        queue: another queue than it was in.
        target: where it runs. By default in the service that it ran in: at the version that calls this or, where that
            is not known (``GAE_VERSION``), as outside of an app, at the service's default version.

    Raises:
        ReplayError: the line holds no dead letter, or its signature doesn't hold. That it has expired is no obstacle.
    """
    from google.appengine.api import taskqueue

    found = _parse(line)
    environ: dict[str, str] = found["headers"]
    keyring = signing.keyring_for(current_settings().secret_keys, found["application"])
    body = base64.b64decode(found["body"])
    path = found["path"].encode("latin-1")
    _verify(keyring, found, environ, body)
    options = Options(**carrying.options_in(environ))
    ours = {key: value for key, value in environ.items() if key.startswith(_OURS) and key not in _NOT_AGAIN}
    # The names of the caller's own are signed with the rest; any other that the line has is none of the task's.
    headers = {_header(key): value for key, value in ours.items()} | dict(options.headers)
    queue = queue or found["queue"]
    name = os.urandom(16).hex()
    age_limit = options.retry_options.task_age_limit if options.retry_options else None
    signature = keyring.sign(
        path=path,
        queue=queue,
        name=name,
        headers=headers,
        body=body,
        not_before=0.0,
        lifetime_seconds=max(signing.LIFETIME_SECONDS, age_limit or 0),
        now=time.time(),
    )
    task = taskqueue.Task(
        payload=body,
        method="POST",
        url=urllib.parse.quote(path),
        name=name,
        target=target or _target_of(found.get("service")),
        headers={**headers, "Content-Type": protocol.CONTENT_TYPE, protocol.SIGNATURE_HEADER: signature},
        retry_options=options.retry_options,
        dispatch_deadline_usec=None if options.deadline_seconds is None else round(options.deadline_seconds * 1e6),
    )
    return task.add(queue)


def _target_of(service: str | None) -> str | None:
    """Return where a task of ``service`` runs again."""
    if service is None:
        return None
    version = current_deployment().version
    if version is not None:
        return f"{version}.{service}"
    # A version can't be left out of two labels, and the one that failed may be gone or as broken as it was.
    return service if service != "default" else None


def _parse(line: str) -> dict[str, Any]:
    start = line.find(MARK)
    text = line[start + len(MARK) :] if start >= 0 else line
    try:
        found, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
        base64.b64decode(found["body"], validate=True)
        valid = (
            all(isinstance(found[name], str) for name in ("path", "queue", "name", "application"))
            and found["path"].encode("latin-1") is not None
            and all(isinstance(text, str) for pair in found["headers"].items() for text in pair)
        )
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
        raise ReplayError(f"this is no dead letter's line: {type(error).__name__}: {error}") from error
    if not valid:
        raise ReplayError("this is no dead letter's line: its parts are of the wrong types")
    return dict(found)


def _verify(keyring: signing.Keyring, found: dict[str, Any], environ: dict[str, str], body: bytes) -> None:
    signature = environ.get(_SIGNATURE)
    if not keyring or signature is None:
        raise ReplayError(
            "only what is signed is run again: the task has no signature"
            if signature is None
            else "only what is signed is run again: set DEFERRED_SECRET_KEYS to the app's keys"
        )
    try:
        digest = keyring.verify(
            signature,
            {**environ, "REQUEST_METHOD": _METHOD, "PATH_INFO": found["path"]},
            queue=found["queue"],
            name=found["name"],
            # Long ago, because what has expired may be run again by somebody who has the keys.
            now=0.0,
        )
    except UntrustedRequestError as error:
        raise ReplayError(f"only what our keys signed is run again: {error}") from error
    if signing.digest_of(body) != digest:
        raise ReplayError("only what our keys signed is run again: the body is not the one that was signed")


def _header(key: str) -> str:
    return "-".join(part.capitalize() for part in key.removeprefix("HTTP_").split("_"))

"""Dead letters: tasks that are not retried and did not succeed, and how to run them again by hand.

The log has a line for each dead letter with everything that is needed to run it again, unless its arguments must not be
logged. :func:`replay` and the command ``deferred-middleware replay`` enqueue the task again from that line, if one of
the app's keys has signed the line.
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

from deferred_middleware.calls.headers import options_in
from deferred_middleware.calls.options import Options
from deferred_middleware.config.process import current_deployment, current_settings
from deferred_middleware.engines.engine import TargetUnknownError, TaskMessage, TaskTemplate
from deferred_middleware.enqueue.enqueued_task import EnqueuedTask
from deferred_middleware.errors import DeferredError, UntrustedRequestError
from deferred_middleware.wire import protocol
from deferred_middleware.wire.signature import LIFETIME_SECONDS, Keyring, digest_of, keyring_for

if TYPE_CHECKING:
    from deferred_middleware.config.settings import Settings
    from deferred_middleware.execution.outcomes import DeadLetter

MARK: Final = "dead letter: "
"""The text before the JSON in the line of the log."""

_SIGNATURE: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)
_OURS: Final = protocol.environ_key(protocol.OUR_HEADER_PREFIX)
# These headers belong to the task that has ended, not to the call.
_NOT_REPLAYED: Final = frozenset(
    protocol.environ_key(header) for header in (protocol.SIGNATURE_HEADER, protocol.EARLIER_ATTEMPTS_HEADER)
)
_NOT_KEPT: Final = frozenset({_SIGNATURE, protocol.environ_key(protocol.SERVER_TOKEN_HEADER)})
# The signature has this in place of the HTTP method, so nobody who reads the log can send the line as a task.
_METHOD: Final = "REPLAY"


class ReplayError(DeferredError, ValueError):
    """A line is not a dead letter, or none of the app's keys has signed it."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetterRecord:
    """The record of a dead letter in the log."""

    text: str
    """Everything that is needed to run the dead letter again, as one line of JSON."""
    is_signed: bool
    """Whether :func:`replay` can verify the record."""


def record(letter: DeadLetter, settings: Settings) -> DeadLetterRecord:
    """Return the record of a dead letter.

    If there is a key, the record has a signature that is valid only for :func:`replay`. It does not contain the
    signature of the task, with which anybody could send the task again.
    """
    context = letter.context
    environ = context.environ
    deployment = current_deployment()
    headers = {key: str(value) for key, value in environ.items() if key.startswith(_OURS) and key not in _NOT_KEPT}
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    keyring = keyring_for(settings.secret_keys, deployment.application)
    if keyring:
        headers[_SIGNATURE] = keyring.sign(
            path=path.encode("latin-1"),
            queue=context.queue,
            name=context.name,
            headers={_header(key): value for key, value in headers.items()},
            body=letter.body,
            not_before=0.0,
            lifetime_seconds=LIFETIME_SECONDS,
            now=time.time(),
            method=_METHOD,
        )
    for name, value in options_in(environ)["headers"].items():
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
    return DeadLetterRecord(text=text, is_signed=_SIGNATURE in headers)


def replay(line: str, *, queue: str | None = None, target: str | None = None) -> EnqueuedTask:
    """Enqueue a dead letter again, as a new task with a new count of attempts; return the task.

    The task keeps the retry options, the dispatch deadline, the limit of attempts and the caller's own headers, except
    cookies and credentials, which are never logged.

    Args:
        line: the line of the log, or the JSON in it.
        queue: the queue to use instead of the original queue.
        target: where the task runs. The default is the service in which it ran before, at the version of this process.
            If that version is not known (``GAE_VERSION``), as outside of an app, it is the service's default version.

    Raises:
        ReplayError: the line is not a dead letter, or its signature is not valid. It may have expired.
        taskqueue.Error: the queue did not accept the task, or the SDK's transport errors.
    """
    from deferred_middleware.engines.current import engine_and_context  # here, because it imports the SDK

    found = _parse(line)
    environ: dict[str, str] = found["headers"]
    keyring = keyring_for(current_settings().secret_keys, found["application"])
    body = base64.b64decode(found["body"])
    path = found["path"].encode("latin-1")
    _verify(keyring, found, environ, body)
    options = Options(**options_in(environ))
    ours = {key: value for key, value in environ.items() if key.startswith(_OURS) and key not in _NOT_REPLAYED}
    # The names of the caller's own headers are signed with the rest. Other headers in the line are not the task's.
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
        lifetime_seconds=max(LIFETIME_SECONDS, age_limit or 0),
        now=time.time(),
    )
    target = target or _target_of(found.get("service"))
    engine, _ = engine_and_context()
    try:
        template = engine.encode(
            TaskTemplate(
                queue=queue,
                path=urllib.parse.quote(path),
                headers={**headers, "Content-Type": protocol.CONTENT_TYPE},
                signed=True,
                target=target,
                retry_options=options.retry_options,
                deadline_seconds=options.deadline_seconds,
            )
        )
    except TargetUnknownError as error:
        raise ReplayError(
            f"the target {target!r} can't be addressed, because the app's hostname is not known here. Set "
            "DEFAULT_VERSION_HOSTNAME."
        ) from error
    message = TaskMessage(template, name, body, time.time(), signature)
    (result,) = engine.add([message], None)
    if not isinstance(result, str):
        raise result.error
    return EnqueuedTask(message, transactional=False, state=_Replayed(name))


@dataclasses.dataclass(slots=True)
class _Replayed:
    """The state of a task that was enqueued again."""

    name: str | None
    was_enqueued: bool = True


def _target_of(service: str | None) -> str | None:
    """Return the target of a task that ran in ``service``."""
    if service is None:
        return None
    version = current_deployment().version
    if version is not None:
        return f"{version}.{service}"
    # A target with a service and no version means the default version. The version that failed may be deleted or
    # broken.
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
        raise ReplayError(f"the line is not a dead letter: {type(error).__name__}: {error}") from error
    if not valid:
        raise ReplayError("the line is not a dead letter: its parts have the wrong types")
    return dict(found)


def _verify(keyring: Keyring, found: dict[str, Any], environ: dict[str, str], body: bytes) -> None:
    signature = environ.get(_SIGNATURE)
    if not keyring or signature is None:
        raise ReplayError(
            "the dead letter can't be verified, because it has no signature"
            if signature is None
            else "the dead letter can't be verified: set DEFERRED_SECRET_KEYS to the app's keys"
        )
    try:
        digest = keyring.verify(
            signature,
            {**environ, "REQUEST_METHOD": _METHOD, "PATH_INFO": found["path"]},
            queue=found["queue"],
            name=found["name"],
            # A time long ago, so that the signature has not expired: whoever has the keys may run old dead letters.
            now=0.0,
        )
    except UntrustedRequestError as error:
        raise ReplayError(f"the dead letter can't be verified: {error}") from error
    if digest_of(body) != digest:
        raise ReplayError("the dead letter can't be verified: its body is not the one that was signed")


def _header(key: str) -> str:
    return "-".join(part.capitalize() for part in key.removeprefix("HTTP_").split("_"))

"""Dead letters: tasks that are not retried and did not succeed, and how to run them again by hand.

The log has a line for each dead letter with everything that is needed to run it again, unless its arguments must not be
logged. :func:`replay` and the command ``deferred-middleware replay`` enqueue the task again from that line, if one of
the app's keys has signed the line.
"""

from __future__ import annotations

import base64
import dataclasses
import hmac
import json
import os
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.calls.headers import options_in, own_headers_in
from deferred_middleware.calls.options import Options
from deferred_middleware.config.conversions import service as check_service
from deferred_middleware.config.process import application_of, current_deployment, current_settings
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
# This header belongs to the task that has ended, not to the call.
_NOT_REPLAYED: Final = protocol.environ_key(protocol.EARLIER_ATTEMPTS_HEADER)
_NOT_KEPT: Final = frozenset({_SIGNATURE, protocol.environ_key(protocol.SERVER_TOKEN_HEADER)})
# The signature has this in place of the HTTP method, so nobody who reads the log can send the line as a task.
_METHOD: Final = "REPLAY"
_TEXTS: Final = ("path", "queue", "name", "application", "body", "reason")
_FIELDS: Final = frozenset({*_TEXTS, "service", "headers"})
"""The names of everything in a record, except the signature, which covers all of it."""


class ReplayError(DeferredError, ValueError):
    """A line is not a dead letter, or none of the app's keys has signed it."""


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """The record of a dead letter in the log."""

    text: str
    """Everything that is needed to run the dead letter again, as one line of JSON."""
    unsigned_because: str | None
    """Why :func:`replay` can't verify the record; None if it can."""


def record(letter: DeadLetter, settings: Settings) -> DeadLetterRecord:
    """Return the record of a dead letter.

    If the task's request had a valid signature, the record has one too, which is valid only for :func:`replay`. It does
    not contain the signature of the task, with which anybody could send the task again.
    """
    context = letter.context
    environ = context.environ
    application = application_of(current_deployment())
    headers = {key: str(value) for key, value in environ.items() if key.startswith(_OURS) and key not in _NOT_KEPT}
    for name, value in own_headers_in(environ).items():
        key = protocol.environ_key(name)
        if key not in protocol.SECRET_ENVIRON_KEYS:
            headers[key] = value
    fields = {
        "path": environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""),
        "queue": context.queue,
        "name": context.name,
        "service": context.service,
        "application": application,
        "headers": headers,
        "body": base64.b64encode(letter.body).decode(),
        "reason": letter.reason,
    }
    keyring = keyring_for(settings.secret_keys, application)
    if not keyring:
        return DeadLetterRecord(json.dumps(fields), "this process has no DEFERRED_SECRET_KEYS")
    if not _came_signed(letter, keyring):
        return DeadLetterRecord(json.dumps(fields), "the task itself was not signed")
    signature = keyring.sign(
        path=b"",
        queue="",
        name=None,
        headers={},
        body=_signed_bytes(fields),
        not_before=0.0,
        lifetime_seconds=LIFETIME_SECONDS,
        now=time.time(),
        method=_METHOD,
    )
    return DeadLetterRecord(json.dumps({**fields, "signature": signature}), None)


def _came_signed(letter: DeadLetter, keyring: Keyring) -> bool:
    """Tell whether one of our keys has signed the task, so that its record may be signed.

    On App Engine standard, a task without a signature may have run as well.
    """
    context = letter.context
    signature = context.environ.get(_SIGNATURE)
    if signature is None:
        return False
    try:
        # The task may have run until after its signature had expired.
        digest = keyring.verify(signature, context.environ, context.queue, context.name, now=0.0)
    except UntrustedRequestError:
        return False
    return hmac.compare_digest(digest_of(letter.body), digest)


def _signed_bytes(fields: dict[str, Any]) -> bytes:
    """Return what is signed of a record: everything but the signature, in the only spelling that we write."""
    return json.dumps(fields, sort_keys=True).encode("ascii")


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
        ReplayError: the line is not a dead letter, or its signature is not valid.
        taskqueue.Error: the queue did not accept the task, or the SDK's transport errors.
    """
    from deferred_middleware.engines.current import engine_and_context  # here, because it imports the SDK

    found, signature = _parse(line)
    keyring = keyring_for(current_settings().secret_keys, found["application"])
    _verify(keyring, found, signature)
    environ: dict[str, str] = found["headers"]
    body = base64.b64decode(found["body"])
    path = found["path"].encode("latin-1")
    options = Options(**options_in(environ))
    ours = {key: value for key, value in environ.items() if key.startswith(_OURS) and key != _NOT_REPLAYED}
    headers = {_header(key): value for key, value in ours.items()} | dict(options.headers)
    queue = queue or found["queue"]
    name = os.urandom(16).hex()
    age_limit = options.retry_options.task_age_limit if options.retry_options else None
    task_signature = keyring.sign(
        path=path,
        queue=queue,
        name=name,
        headers=headers,
        body=body,
        not_before=0.0,
        lifetime_seconds=max(LIFETIME_SECONDS, age_limit or 0),
        now=time.time(),
    )
    target = target or _target_of(found["service"])
    engine, _ = engine_and_context(current_settings())
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
        raise ReplayError(str(error)) from error
    message = TaskMessage(template, name, body, time.time(), task_signature)
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


def _parse(line: str) -> tuple[dict[str, Any], str]:
    """Return what a line says, not verified yet, and its signature."""
    start = line.find(MARK)
    text = line[start + len(MARK) :] if start >= 0 else line
    try:
        found, _ = json.JSONDecoder().raw_decode(text[text.index("{") :])
        signature = found.pop("signature", None)
        base64.b64decode(found["body"], validate=True)
        found["path"].encode("latin-1")
        found["application"].encode()
        check_service(found["service"])
        valid = (
            all(isinstance(found[name], str) for name in _TEXTS)
            and all(isinstance(text, str) for pair in found["headers"].items() for text in pair)
            and found.keys() == _FIELDS
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ReplayError(f"the line is not a dead letter: {type(error).__name__}: {error}") from error
    if not valid or not isinstance(signature, (str, type(None))):
        raise ReplayError("the line is not a dead letter: its parts have the wrong types")
    if signature is None:
        raise ReplayError("the dead letter can't be verified, because it has no signature")
    return dict(found), signature


def _verify(keyring: Keyring, found: dict[str, Any], signature: str) -> None:
    if not keyring:
        raise ReplayError("the dead letter can't be verified: set DEFERRED_SECRET_KEYS to the app's keys")
    try:
        # The time is long ago, so that the signature has not expired: whoever has the keys may run old dead letters.
        digest = keyring.verify(signature, {"REQUEST_METHOD": _METHOD, "PATH_INFO": ""}, queue="", name="", now=0.0)
    except UntrustedRequestError as error:
        raise ReplayError(f"the dead letter can't be verified: {error}") from error
    if not hmac.compare_digest(digest_of(_signed_bytes(found)), digest):
        raise ReplayError("the dead letter can't be verified: it is not what was signed")


def _header(key: str) -> str:
    return "-".join(part.capitalize() for part in key.removeprefix("HTTP_").split("_"))

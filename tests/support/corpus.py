"""The corpus of forged requests: every combination of a request's properties, with the expected result.

Each case starts with the headers as the sender spells them. They pass the platform's front end and a server, and
reach the middleware. An oracle states the expected result. It looks only at the chosen properties, not at headers
or signatures.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from deferred_middleware import call
from deferred_middleware.calls import payload
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.execution.middleware import DeferredMiddleware
from tests.support import sample
from tests.support.delivering import task_environ
from tests.support.watching import KEY, NAME, QUEUE, SIGNATURE, USER_IP, Signed, middleware

NOW = time.time()
BODY = payload.dumps(call(sample.note, "ran"), 5)
TASK = Signed(body=BODY, now=NOW)
_OTHER_KEY = SecretKey("x" * 40)


def _changed(**changes: Any) -> str:
    return Signed(**{"body": BODY, "now": NOW, **changes}).with_key(KEY)


# What is signed, and the name and queue that the signature is valid for. None means any name.
SIGNATURES: dict[str, tuple[str | None, str | None, str]] = {
    "absent": (None, None, ""),
    "good": (TASK.with_key(KEY), None, "default"),
    "good, another queue's": (_changed(queue="other"), None, "other"),
    "good, and names the task": (_changed(name="task1"), "task1", "default"),
    "good, and names another": (_changed(name="other"), "other", "default"),
}
BAD_SIGNATURES: dict[str, str] = {
    "empty": "",
    "another key": TASK.with_key(_OTHER_KEY),
    "another application": TASK.with_key(KEY, "other"),
    "another URL": _changed(path=b"/_cb/deferred/tests.support.sample/pair"),
    "another body": _changed(body=BODY + b"."),
    "a header more": _changed(headers={"X-Deferred-Namespace": "tenant"}),
    "expired": _changed(now=NOW - 7200),
    "cut off": TASK.with_key(KEY)[:-1],
    "not of this format": "v9;k=1",
    "known key, wrong MAC": TASK.with_key(KEY)[:-64] + TASK.with_key(_OTHER_KEY)[-64:],
}

PLACES = ["standard", "standard with a key", "standard, signatures required", "elsewhere"]
# Who sends the request, and how they spell the platform's headers.
SENDERS = ["the queue", "a stranger", "a stranger with underscores", "a stranger with both spellings"]
SERVERS = ["folds underscores", "drops underscores"]
NAMES = [None, "", "task1", "other"]
QUEUES = [None, "", "default", "other"]
USER_IPS = [None, "0.1.0.2", "198.51.100.7"]
METHODS = ["POST", "GET"]
# Address, server and content type: the middleware ignores the address and the type. All these servers are careful.
IRRELEVANT = [
    (None, "waitress", "application/octet-stream"),
    ("0.1.0.2", "WSGIServer/0.2 CPython/3.11.7", "application/octet-stream"),
    ("0.1.0.2", "gunicorn/21.2.0", "application/x-www-form-urlencoded"),
    ("10.0.0.1", "Werkzeug/3.1.3", None),
]


class Case(NamedTuple):
    """One request: a choice from each of the lists above."""

    place: str
    sender: str
    server: str
    name: str | None
    queue: str | None
    user_ip: str | None
    signature: str
    method: str


def spellings(case: Case, header: str, value: str | None) -> tuple[str | None, str | None]:
    """Return one of the platform's headers as the server gets it, in the exact spelling and with underscores."""
    exact, underscored = value, None
    if case.sender == "a stranger with underscores":
        exact, underscored = None, value
    elif case.sender == "a stranger with both spellings":
        underscored = value
    if case.place != "elsewhere" and case.sender != "the queue":
        # App Engine passes on exactly spelled headers from strangers, and adds the address of the sender.
        exact = "198.51.100.7" if header == USER_IP else None
    return exact, underscored


def arriving(case: Case, header: str, value: str | None) -> str | None:
    """Return the value of one of the platform's headers as the middleware sees it."""
    exact, underscored = spellings(case, header, value)
    if case.server == "drops underscores":
        underscored = None
    values = [value for value in (exact, underscored) if value is not None]
    return ",".join(values) if values else None


def signature_of(case: Case) -> str | None:
    """Return the signature that the request carries."""
    return SIGNATURES[case.signature][0] if case.signature in SIGNATURES else BAD_SIGNATURES[case.signature]


def request(case: Case, irrelevant: tuple[Any, ...]) -> dict[str, Any]:
    """Return a case's request as the middleware gets it."""
    address, software, content_type = irrelevant
    return task_environ(
        BODY,
        REQUEST_METHOD=case.method,
        REMOTE_ADDR=address,
        SERVER_SOFTWARE=software,
        CONTENT_TYPE=content_type,
        **{
            NAME: arriving(case, NAME, case.name),
            QUEUE: arriving(case, QUEUE, case.queue),
            USER_IP: arriving(case, USER_IP, case.user_ip),
            SIGNATURE: signature_of(case),
        },
    )


def legitimate(case: Case) -> bool:
    """Return whether a request is a task's, by its origin and not by its headers.

    A stranger who has a complete task request, with its signature, can send it again anywhere except on App Engine
    standard. The threat model documents this.
    """
    if case.method != "POST" or not case.name or not case.queue or case.user_ip == "198.51.100.7":
        return False
    if case.place != "elsewhere":
        if case.sender != "the queue":
            return False
        if case.signature == "absent":
            return case.place != "standard, signatures required"
        if case.place == "standard":
            return True  # this place has no key; only versions with a key check signatures
    else:
        if case.signature == "absent":
            return False
        if case.sender == "a stranger with underscores" and case.server == "drops underscores":
            return False
        if case.sender == "a stranger with both spellings" and case.server == "folds underscores":
            return False
    if case.signature in BAD_SIGNATURES:
        return False
    _, name, queue = SIGNATURES[case.signature]
    return case.queue == queue and name in (None, case.name)


def app_at(place: str) -> DeferredMiddleware:
    """Return the middleware as it is configured in a place."""
    return middleware(
        None if place == "elsewhere" else "standard",
        keys=() if place == "standard" else (KEY,),
        required=place == "standard, signatures required",
    )

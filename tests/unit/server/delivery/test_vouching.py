"""The local server signs tasks that were enqueued without a signature, so that the app runs them."""

from __future__ import annotations

import dataclasses
import io
import time
from typing import Any

import pytest

from deferred_middleware import Settings
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.process import Deployment
from deferred_middleware.errors import UntrustedRequestError
from deferred_middleware.execution.trust import Authenticator
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.delivery.vouching import Voucher
from deferred_middleware.server.store.records import ClaimedTask, CloudOrigin
from deferred_middleware.wire.signature import Keyring
from tests.support.storing import TASK

KEY, OTHER_KEY = "k" * 40, "o" * 40
SERVICE = Service(name="default", version="local", host="127.0.0.1", port=1, concurrency=1)
LEGACY = dataclasses.replace(
    TASK, url="/_ah/queue/deferred", headers=(("Content-Type", "application/octet-stream"),), body=b"a pickle"
)


def requests(**environ: str) -> TaskRequests:
    """Return what makes the requests for a service with this environment."""
    return TaskRequests(Voucher({SERVICE.id: environ}, application="shop"))


def delivered(task: ClaimedTask, **environ: str) -> dict[str, Any]:
    """Return the WSGI environment of the request that delivers a task."""
    made: dict[str, Any] = {"SCRIPT_NAME": "", "wsgi.input": io.BytesIO(task.body)}
    return made | requests(**environ).environ(task, SERVICE, "localhost")


def authenticator(key: str = KEY) -> Authenticator:
    """Return the check of an app on the local server."""
    deployment = Deployment(application="shop", environment="localdev")
    return Authenticator(Settings(secret_keys=(SecretKey(key),)), deployment)


@pytest.mark.parametrize("url", ["/_ah/queue/deferred", "/a%20b/%C3%A9", "/a;b=c"])
def test_a_task_without_a_signature_gets_one(url: str) -> None:
    """The app accepts a task that the older library has enqueued, whatever its path."""
    environ = delivered(dataclasses.replace(LEGACY, url=url), DEFERRED_SECRET_KEYS=f"{KEY}, {OTHER_KEY}")

    assert authenticator().body_of(environ) == b"a pickle"


@pytest.mark.parametrize(
    ("changed", "value"),
    [
        ("PATH_INFO", "/elsewhere"),
        ("HTTP_X_APPENGINE_QUEUENAME", "other"),
        ("HTTP_X_APPENGINE_TASKNAME", "other"),
        ("HTTP_X_DEFERRED_MAX_ATTEMPTS", "1"),
        ("wsgi.input", io.BytesIO(b"a pickl3")),
    ],
)
def test_the_signature_is_for_this_task_only(changed: str, value: object) -> None:
    """A signature of the server is no more use for another request than any other signature."""
    environ = delivered(LEGACY, DEFERRED_SECRET_KEYS=KEY) | {changed: value}

    with pytest.raises(UntrustedRequestError):
        authenticator().body_of(environ)


def test_the_signature_is_that_of_the_services_key() -> None:
    """A service with another key refuses the task."""
    with pytest.raises(UntrustedRequestError, match="unknown key"):
        authenticator().body_of(delivered(LEGACY, DEFERRED_SECRET_KEYS=OTHER_KEY))


@pytest.mark.parametrize(
    "task",
    [
        dataclasses.replace(LEGACY, method="GET", body=b""),
        dataclasses.replace(LEGACY, method="PUT"),
        dataclasses.replace(LEGACY, url="/_ah/queue/deferred?x=1"),
        dataclasses.replace(LEGACY, url="/_ah/queue/deferred#x"),
        dataclasses.replace(LEGACY, headers=(("X-Deferred-Namespace", "(default)"),)),
        dataclasses.replace(LEGACY, headers=(("x_deferred_signature", "forged"),)),
    ],
)
def test_other_tasks_get_none(task: ClaimedTask) -> None:
    """Tasks that are no calls, and tasks of our own library, are delivered as they were enqueued."""
    assert "X-Deferred-Signature" not in dict(requests(DEFERRED_SECRET_KEYS=KEY).headers(task, SERVICE, "localhost"))
    assert delivered(task, DEFERRED_SECRET_KEYS=KEY).get("HTTP_X_DEFERRED_SIGNATURE") is None


@pytest.mark.parametrize(("text", "signed"), [("true", False), ("True", False), ("1", False), ("false", True)])
def test_a_service_that_requires_signatures_gets_none_from_the_server(text: str, signed: bool) -> None:
    """As on App Engine, such a service refuses a task that was enqueued without a signature."""
    environ = delivered(LEGACY, DEFERRED_SECRET_KEYS=KEY, DEFERRED_REQUIRE_SIGNATURE=text)

    assert ("HTTP_X_DEFERRED_SIGNATURE" in environ) is signed


def test_a_service_that_is_not_known_gets_none() -> None:
    """Without the key of a service the server can't sign."""
    other = dataclasses.replace(SERVICE, name="other")

    headers = requests(DEFERRED_SECRET_KEYS=KEY).headers(LEGACY, other, "localhost")
    assert "X-Deferred-Signature" not in dict(headers)
    assert "HTTP_X_DEFERRED_SIGNATURE" not in delivered(LEGACY)


def test_the_server_does_not_vouch_for_a_task_of_the_cloud_tasks_api() -> None:
    """Anybody who reaches that API's port could have created it."""
    environ = delivered(dataclasses.replace(LEGACY, origin=CloudOrigin()), DEFERRED_SECRET_KEYS=KEY)

    with pytest.raises(UntrustedRequestError):
        authenticator().body_of(environ)


OURS = {"X-Deferred-Namespace": "tenant", "X-Deferred-Note": "\xe9"}


def signed(key: str, name: str | None = None, *, now: float = 0.0) -> ClaimedTask:
    """Return a task of our library in the queue ``default``."""
    signature = Keyring([SecretKey(key)], "shop").sign(
        path=b"/work", queue="default", name=name, headers=OURS, body=b"a pickle", not_before=now or time.time(),
        lifetime_seconds=100, now=now or time.time(),
    )  # fmt: skip
    headers = [*OURS.items(), ("Content-Type", "text/plain"), ("X-Deferred-Signature", signature)]
    # As in the store: each character stands for one byte.
    stored = tuple((header, value.encode().decode("latin-1")) for header, value in headers)
    return dataclasses.replace(TASK, name=name or "one", body=b"a pickle", headers=stored)


@pytest.mark.parametrize("name", [None, "mine"])
@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_a_moved_task_is_signed_for_its_new_queue(name: str | None, key: str) -> None:
    """The app accepts it from that queue, with all its headers, as long as before; and no more from the first one."""
    keys = {"DEFERRED_SECRET_KEYS": f"{KEY}, {OTHER_KEY}", "DEFERRED_REQUIRE_SIGNATURE": "true"}
    task = signed(key, name)

    headers = requests(**keys).moved(task, "other", SERVICE.id)

    moved = dataclasses.replace(task, queue="other", headers=headers)
    assert [name for name, _value in set(headers) - set(task.headers)] == ["X-Deferred-Signature"]
    assert authenticator().body_of(delivered(moved, **keys)) == b"a pickle"
    with pytest.raises(UntrustedRequestError):
        authenticator().body_of(delivered(dataclasses.replace(moved, queue="default"), **keys))
    expiries = [float(dict(one)["X-Deferred-Signature"][37:47]) for one in (task.headers, headers)]
    assert expiries[1] == pytest.approx(expiries[0], abs=1)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"body": b"another"}, "does not match its payload"),
        ({"queue": "third"}, "does not match the request"),
        ({"url": "/elsewhere"}, "does not match the request"),
        ({"headers": signed("x" * 40).headers}, "unknown key"),
        ({"headers": signed(KEY, now=1_000_000_000.0).headers}, "expired"),
        ({"headers": (("X-Deferred-Signature", "forged"),)}, "malformed"),
    ],
)
def test_a_task_that_no_app_would_accept_gets_no_signature(changes: dict[str, Any], problem: str) -> None:
    """A move makes no signature valid that was not."""
    with pytest.raises(UntrustedRequestError, match=problem):
        requests(DEFERRED_SECRET_KEYS=KEY).moved(dataclasses.replace(signed(KEY), **changes), "other", SERVICE.id)


def test_a_task_is_not_moved_where_it_would_be_refused() -> None:
    """Without a key of the service that would run it, the task stays where it is; an unsigned one needs none."""
    with pytest.raises(UntrustedRequestError, match="no key of the service"):
        requests(DEFERRED_SECRET_KEYS=KEY).moved(signed(KEY), "other", None)
    assert requests(DEFERRED_SECRET_KEYS=KEY).moved(LEGACY, "other", None) == LEGACY.headers
    task = signed(KEY)
    assert TaskRequests().moved(task, "other", None) == task.headers

"""Tests of which requests are trusted as the task queue's."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest

from deferred_middleware import Settings, SettingsError
from deferred_middleware.config.process import Deployment
from deferred_middleware.errors import SecretKeyMissingError, UntrustedRequestError
from deferred_middleware.execution.trust import Authenticator
from deferred_middleware.wire.signature import Keyring
from tests.support.delivering import APP_ENGINE_STANDARD, task_environ

KEY = "k" * 32
STANDARD = Deployment(environment="standard", application="app")
ELSEWHERE = Deployment(application="app")
SIGNED = Settings(secret_keys=(KEY,))  # type: ignore[arg-type]


def check_of(authenticator: Authenticator, **changes: Any) -> str | None:
    """Return the check that refuses a task's request, or None if the request is accepted."""
    try:
        authenticator.body_of(task_environ(b"", **changes))
    except UntrustedRequestError as error:
        return error.check
    return None


def signature(**changes: Any) -> str:
    """Return a valid signature for the request of ``task_environ``."""
    facts: dict[str, Any] = {
        "path": b"/_cb/deferred/tests.support.sample/note",
        "queue": "default",
        "name": None,
        "headers": {},
        "body": b"",
        "not_before": 0.0,
        "lifetime_seconds": 100.0,
        "now": 1000.0,
    }
    return Keyring(SIGNED.secret_keys, "app").sign(**facts | changes)


def authenticator(deployment: Deployment, settings: Settings = SIGNED) -> Authenticator:
    """Return an authenticator with a fixed clock."""
    return Authenticator(settings, deployment, clock=lambda: 1000.0)


def test_the_task_queues_request_is_believed() -> None:
    """On App Engine standard, a request with the platform's headers is accepted as a task."""
    assert authenticator(STANDARD, Settings()).body_of(task_environ(b"body")) == b"body"


def test_the_user_ip_may_be_absent() -> None:
    """The user's IP is checked only if it is present, because not every engine sends it."""
    assert check_of(authenticator(STANDARD, Settings()), HTTP_X_APPENGINE_USER_IP=None) is None


@pytest.mark.parametrize("deployment", [STANDARD, ELSEWHERE])
@pytest.mark.parametrize(
    ("name", "queue", "ip"),
    [
        combination
        for combination in itertools.product(
            ("task1", "", None, "task1,task2"),
            ("default", "", None, "default,default"),
            ("0.1.0.2", "1.2.3.4", "", None, "0.1.0.2,1.2.3.4", "1.2.3.4,0.1.0.2", "0.1.0.2 "),
        )
        if combination not in (("task1", "default", "0.1.0.2"), ("task1", "default", None))
    ],
)
def test_anything_else_is_refused(name: str | None, queue: str | None, ip: str | None, deployment: Deployment) -> None:
    """An absent, empty or repeated name or queue, or another user IP, is refused, even with a signature."""
    facts = {"HTTP_X_APPENGINE_TASKNAME": name, "HTTP_X_APPENGINE_QUEUENAME": queue, "HTTP_X_APPENGINE_USER_IP": ip}

    assert check_of(authenticator(STANDARD, Settings()), **facts) is not None
    signed = signature(queue=queue or "default")
    assert check_of(authenticator(deployment), **facts, HTTP_X_DEFERRED_SIGNATURE=signed) is not None


def test_the_address_is_no_evidence() -> None:
    """REMOTE_ADDR doesn't affect whether a request is accepted."""
    standard = authenticator(STANDARD, Settings())

    assert check_of(standard, HTTP_X_APPENGINE_TASKNAME=None, REMOTE_ADDR="0.1.0.2") == "task-name"
    assert check_of(standard, REMOTE_ADDR="10.0.0.1") is None


SERVERS = {
    "gunicorn/23.0.0": True,
    "gunicorn": True,
    "waitress": True,
    "WSGIServer/0.2 CPython/3.11.7": True,
    "Werkzeug/3.1.3": True,
    "Apache/2.4.62": True,
    "Cheroot/11.1.2 Server": False,
    "CherryPy/18.10": False,
    "Granian": False,
    "Development/2.0": False,
    "not gunicorn": False,
    "": False,
    None: False,  # Tornado and Twisted set none
}


@pytest.mark.parametrize("server", SERVERS)
def test_headers_are_trusted_only_from_servers_that_are_careful(server: str | None) -> None:
    """On App Engine standard, a server that may replace one spelling of a header by another one needs signatures."""
    expected = None if SERVERS[server] else "server"

    assert check_of(authenticator(STANDARD, Settings()), SERVER_SOFTWARE=server) == expected
    unverified = {"HTTP_X_DEFERRED_SIGNATURE": signature(), "SERVER_SOFTWARE": server}
    assert check_of(authenticator(STANDARD, Settings()), **unverified) == expected
    assert check_of(authenticator(STANDARD), **unverified) is None, "a signature is enough"


def test_a_missing_signature_is_accepted_on_app_engine_only() -> None:
    """A task without a signature is accepted only on App Engine standard, and only if signatures are not required."""
    required = Settings(secret_keys=(KEY,), require_signature=True)  # type: ignore[arg-type]

    assert check_of(authenticator(STANDARD)) is None
    assert check_of(authenticator(STANDARD, required)) == "signature-missing"
    assert check_of(authenticator(ELSEWHERE)) == "signature-missing"
    not_required = Settings(secret_keys=(KEY,), require_signature=False)  # type: ignore[arg-type]
    assert check_of(authenticator(ELSEWHERE, not_required)) == "signature-missing"


@pytest.mark.parametrize("deployment", [STANDARD, ELSEWHERE, Deployment(environment="localdev", application="app")])
def test_a_signature_is_checked_everywhere(deployment: Deployment) -> None:
    """A valid signature is accepted and an invalid one refused in every environment, including App Engine."""
    good = signature(body=b"body")

    environ = task_environ(b"body", HTTP_X_DEFERRED_SIGNATURE=good)
    assert authenticator(deployment).body_of(environ) == b"body"
    bad = [good[:-1], good + "0", "", "v1", "v2", signature(path=b"/x"), signature(queue="x"), signature(now=0.0)]
    for other in bad:
        assert check_of(authenticator(deployment), HTTP_X_DEFERRED_SIGNATURE=other) is not None


def test_the_path_is_signed_with_its_mount() -> None:
    """If an app is mounted under a prefix, the signature covers the whole path, prefix included."""
    signed = signature(path=b"/mount/_cb/deferred/tests.support.sample/note")

    assert check_of(authenticator(ELSEWHERE), SCRIPT_NAME="/mount", HTTP_X_DEFERRED_SIGNATURE=signed) is None
    assert check_of(authenticator(ELSEWHERE), HTTP_X_DEFERRED_SIGNATURE=signed) == "signature"


@pytest.mark.parametrize(("key", "value"), [("PATH_INFO", "/_cb/deferred/Ł"), ("QUERY_STRING", "Ł")])
def test_what_wsgi_does_not_allow_is_refused(key: str, value: str) -> None:
    """A path or query with characters outside Latin-1, which WSGI forbids, is refused without an exception."""
    assert check_of(authenticator(ELSEWHERE), **{key: value, "HTTP_X_DEFERRED_SIGNATURE": signature()}) in (
        "path",
        "signature",
    )


def test_a_name_beyond_ascii_is_refused() -> None:
    """A task or queue name with non-ASCII characters is refused without an exception, even if the name is signed."""
    signed = signature(name="task1")

    for name in ("tas\xe9", "\u0141"):
        facts = {"HTTP_X_APPENGINE_TASKNAME": name, "HTTP_X_DEFERRED_SIGNATURE": signed}
        assert check_of(authenticator(ELSEWHERE), **facts) == "signature"
        facts = {"HTTP_X_APPENGINE_QUEUENAME": name, "HTTP_X_DEFERRED_SIGNATURE": signed}
        assert check_of(authenticator(ELSEWHERE), **facts) == "signature"


def test_without_keys_signatures_of_others_are_not_looked_at() -> None:
    """On App Engine standard, a version without a key accepts tasks that a version with a key signed."""
    assert check_of(authenticator(STANDARD, Settings()), HTTP_X_DEFERRED_SIGNATURE=signature()) is None


@pytest.mark.parametrize("environment", [None, "flex", "localdev", "Standard"])
def test_elsewhere_a_key_is_needed(environment: str | None) -> None:
    """Outside App Engine standard, a key is required, and the error says what to set."""
    with pytest.raises(SecretKeyMissingError, match=r"DEFERRED_SECRET_KEYS is not set.*at least 32 bytes") as caught:
        authenticator(Deployment(environment=environment), Settings())

    assert isinstance(caught.value, SettingsError)
    assert "GAE_ENV" in str(caught.value)


@pytest.mark.parametrize("name", APP_ENGINE_STANDARD)
@pytest.mark.parametrize("value", [None, "", "flex"])
def test_every_variable_of_the_platform_is_needed(name: str, value: str | None) -> None:
    """If one of the platform's variables is missing or empty, headers are not trusted, whatever the others say."""
    environ = {key: text for key, text in {**APP_ENGINE_STANDARD, name: value}.items() if text is not None}
    deployment = Deployment.from_environ(environ)

    is_trusted = value == "flex" and name != "GAE_ENV"
    assert deployment.on_app_engine_standard is is_trusted
    assert Deployment.from_environ(APP_ENGINE_STANDARD).on_app_engine_standard
    if not is_trusted:
        with pytest.raises(SecretKeyMissingError):
            authenticator(deployment, Settings())


@pytest.mark.parametrize(
    "environ",
    [
        {"GAE_ENV": "standard"},
        {"GAE_ENV": "standard", "K_SERVICE": "app", "K_REVISION": "app-1", "PORT": "8080"},
        {**APP_ENGINE_STANDARD, "K_SERVICE": "app"},
        {name: text for name, text in APP_ENGINE_STANDARD.items() if name != "GAE_ENV"},
    ],
)
def test_another_platform_is_not_app_engine(environ: dict[str, str]) -> None:
    """On Cloud Run or a laptop, a key is needed also if somebody has set ``GAE_ENV``."""
    deployment = Deployment.from_environ(environ)

    assert not deployment.on_app_engine_standard
    assert not deployment.on_local_server
    with pytest.raises(SecretKeyMissingError, match="K_SERVICE"):
        authenticator(deployment, Settings())


def test_requiring_signatures_needs_a_key() -> None:
    """A key is required on App Engine standard if signatures are required."""
    with pytest.raises(SecretKeyMissingError, match="DEFERRED_REQUIRE_SIGNATURE"):
        authenticator(STANDARD, Settings(require_signature=True))


def test_another_body_is_refused() -> None:
    """A body that differs from the signed one in any byte is refused."""
    signed = signature(body=b"body")
    for other in (b"", b"bodY", b"body "):
        with pytest.raises(UntrustedRequestError) as caught:
            authenticator(ELSEWHERE).body_of(task_environ(other, HTTP_X_DEFERRED_SIGNATURE=signed))
        assert caught.value.check == "body"


def test_the_body_of_an_untrusted_request_is_not_read() -> None:
    """The body of an untrusted request is not read."""
    stream = io.BytesIO(b"body")
    environ = task_environ(b"body", HTTP_X_DEFERRED_SIGNATURE=signature(queue="x"), **{"wsgi.input": stream})

    with pytest.raises(UntrustedRequestError):
        authenticator(ELSEWHERE).body_of(environ)
    assert stream.tell() == 0

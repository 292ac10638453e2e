"""Tests of tasks by URL: whose token or signature is trusted, and the reason for each refusal."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deferred_middleware import DeferredMiddleware, Settings, call
from deferred_middleware.calls import payload
from deferred_middleware.config import process
from deferred_middleware.config.process import Deployment
from deferred_middleware.errors import SecretKeyMissingError, UntrustedRequestError
from deferred_middleware.execution import oidc
from deferred_middleware.execution.trust import Authenticator
from deferred_middleware.wire.signature import Keyring
from tests.support import sample
from tests.support.delivering import task_environ
from tests.support.google_certificates import ACCOUNT, AUDIENCE, CertificateServer, SigningKey, unsigned

KEY = "k" * 32
CLOUD_RUN = Deployment(service="default", application="shop", cloud_run_service="shop")
SETTINGS = Settings(
    engine="cloud-tasks", service_urls=(("default", AUDIENCE), ("jobs", "https://jobs.example.com")),
    service_account=ACCOUNT,
    secret_keys=(),
)  # fmt: skip
FORGED = 100_000 if os.environ.get("DEFERRED_SOAK") else 1_000
GOOGLES, STRANGERS = SigningKey("google-1"), SigningKey("google-1")


@pytest.fixture(scope="module")
def server() -> Iterator[CertificateServer]:
    """Serve the certificates of Google."""
    with CertificateServer(GOOGLES) as server:
        yield server


@pytest.fixture(autouse=True)
def certificates(server: CertificateServer, monkeypatch: pytest.MonkeyPatch) -> oidc.Certificates:
    """Fetch the certificates from the server."""
    server.status, server.asked, server.max_age = 200, 0, 3600
    server.certificates = {GOOGLES.key_id: GOOGLES.certificate}
    found = oidc.Certificates(server.url)
    monkeypatch.setattr(oidc, "GOOGLE", found)
    return found


def by_url(body: bytes = b"", **changes: Any) -> dict[str, Any]:
    """Return the environ of a task's request that Cloud Tasks sent to a URL."""
    headers = {
        "HTTP_X_APPENGINE_TASKNAME": None,
        "HTTP_X_APPENGINE_QUEUENAME": None,
        "HTTP_X_APPENGINE_USER_IP": None,
        "HTTP_X_CLOUDTASKS_TASKNAME": "task1",
        "HTTP_X_CLOUDTASKS_QUEUENAME": "default",
        "HTTP_USER_AGENT": "Google-Cloud-Tasks",
    }
    environ = task_environ(body, **{**headers, **changes})
    return {name: value for name, value in environ.items() if value is not None}


def check_of(environ: dict[str, Any], settings: Settings = SETTINGS, deployment: Deployment = CLOUD_RUN) -> str | None:
    """Return the check that refuses a request; None if it is accepted."""
    try:
        Authenticator(settings, deployment).body_of(environ)
    except UntrustedRequestError as error:
        return error.check
    return None


def with_token(token: str) -> dict[str, Any]:
    """Return a request with a token."""
    return by_url(HTTP_AUTHORIZATION=f"Bearer {token}")


def test_the_token_of_the_named_account_is_believed() -> None:
    """A task with a token of the named service account for this service's URL is accepted."""
    authenticator = Authenticator(SETTINGS, CLOUD_RUN)

    assert authenticator.body_of(by_url(b"body", HTTP_AUTHORIZATION=f"Bearer {GOOGLES.token()}")) == b"body"
    assert check_of(with_token(GOOGLES.token(iss="accounts.google.com"))) is None


def _now() -> int:
    return int(time.time())


REFUSED: dict[str, tuple[Any, str]] = {
    "another audience": (lambda: GOOGLES.token(aud="https://jobs.example.com"), "token-audience"),
    "no audience": (lambda: GOOGLES.token(aud=None), "token-audience"),
    "audience and another": (lambda: GOOGLES.token(aud=[AUDIENCE, "https://other.example.com"]), "token-audience"),
    "another account": (lambda: GOOGLES.token(email="thief@shop.iam.gserviceaccount.com"), "token-account"),
    "no account": (lambda: GOOGLES.token(email=None), "token-account"),
    "account in capitals": (lambda: GOOGLES.token(email=ACCOUNT.upper()), "token-account"),
    "not verified": (lambda: GOOGLES.token(email_verified=False), "token-account"),
    "verified as text": (lambda: GOOGLES.token(email_verified="true"), "token-account"),
    "another issuer": (lambda: GOOGLES.token(iss="https://accounts.google.com.example.com"), "token-issuer"),
    "no issuer": (lambda: GOOGLES.token(iss=None), "token-issuer"),
    "expired": (lambda: GOOGLES.token(iat=_now() - 7200, exp=_now() - 60), "token-expired"),
    "from the future": (lambda: GOOGLES.token(iat=_now() + 120), "token-early"),
    "no expiry": (lambda: GOOGLES.token(exp=None), "token-format"),
    "expiry as text": (lambda: GOOGLES.token(exp="later"), "token-format"),
    "a stranger's key under Google's name": (STRANGERS.token, "token-signature"),
    "an unknown key": (lambda: SigningKey("other").token(), "token-key"),
    "no key": (lambda: unsigned(GOOGLES.token(), kid=None), "token-key"),
    "no algorithm": (lambda: unsigned(GOOGLES.token(), alg="none"), "token-algorithm"),
    "HMAC with the certificate": (lambda: unsigned(GOOGLES.token(), alg="HS256"), "token-algorithm"),
    "another algorithm": (lambda: unsigned(GOOGLES.token(), alg="ES256"), "token-algorithm"),
    "no signature": (lambda: GOOGLES.token().rpartition(".")[0] + ".", "token-signature"),
    "signature removed by Cloud Run": (
        lambda: GOOGLES.token().rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE",
        "token-signature-removed",
    ),
    "an access token": (lambda: "ya29.a0AfH6SMB", "token-format"),
    "nonsense": (lambda: "x.y.z", "token-format"),
    "two tokens": (lambda: f"{GOOGLES.token()}, Bearer {GOOGLES.token()}", "token-format"),
    "huge": (lambda: "a" * 100_000, "token-format"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_any_other_token_is_refused(case: str) -> None:
    """A token that is wrong in any way is refused with its own reason, which doesn't show the token."""
    make, check = REFUSED[case]
    token = make()

    with pytest.raises(UntrustedRequestError) as caught:
        Authenticator(SETTINGS, CLOUD_RUN).body_of(with_token(token))
    assert caught.value.check == check
    assert token[:20] not in str(caught.value)


def test_clocks_may_differ_a_little() -> None:
    """A token that is a few seconds early or late is accepted."""
    assert check_of(with_token(GOOGLES.token(iat=_now() + 20))) is None
    assert check_of(with_token(GOOGLES.token(iat=_now() - 3600, exp=_now() - 20))) is None


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({}, "token-missing"),
        ({"HTTP_AUTHORIZATION": ""}, "token-missing"),
        ({"HTTP_AUTHORIZATION": "Basic abc"}, "token-format"),
        ({"HTTP_X_CLOUDTASKS_TASKNAME": ""}, "task-name"),
        ({"HTTP_X_CLOUDTASKS_QUEUENAME": None}, "task-name"),
        ({"HTTP_X_CLOUDTASKS_TASKNAME": "a,b"}, "task-name"),
        ({"HTTP_X_SERVERLESS_AUTHORIZATION": "Bearer x"}, "token-missing"),
    ],
)
def test_headers_alone_are_refused(changes: dict[str, Any], check: str) -> None:
    """The headers of Cloud Tasks without a token prove nothing, on any platform."""
    assert check_of(by_url(**changes)) == check
    standard = Deployment(environment="standard", application="shop", service="default")
    assert check_of(by_url(**changes), Settings(), standard) in ("no-proof", "task-name")


def test_the_headers_of_app_engine_need_no_token_to_be_refused() -> None:
    """A token doesn't make the headers of App Engine trustworthy elsewhere."""
    environ = task_environ(b"", HTTP_AUTHORIZATION=f"Bearer {GOOGLES.token()}")

    assert check_of(environ) == "signature-missing"
    assert check_of({**by_url(HTTP_AUTHORIZATION=f"Bearer {GOOGLES.token()}"), **environ}) == "signature-missing"


def test_with_a_key_a_token_is_not_enough() -> None:
    """If the process has a key, only a signature is trusted; it covers the name and the queue of the task."""
    settings = Settings(secret_keys=(KEY,), **{name: getattr(SETTINGS, name) for name in NAMES})  # type: ignore[arg-type]
    signed = Keyring(settings.secret_keys, "shop").sign(
        path=b"/_cb/deferred/tests.support.sample/note",
        queue="default",
        name="task1",
        headers={},
        body=b"",
        not_before=0.0,
        lifetime_seconds=100.0,
        now=time.time(),
    )

    assert check_of(with_token(GOOGLES.token()), settings) == "signature-missing"
    assert check_of(by_url(HTTP_X_DEFERRED_SIGNATURE=signed), settings) is None
    assert check_of(by_url(HTTP_X_DEFERRED_SIGNATURE=signed, HTTP_X_CLOUDTASKS_TASKNAME="task2"), settings)
    assert check_of(by_url(HTTP_X_DEFERRED_SIGNATURE=signed, HTTP_X_CLOUDTASKS_QUEUENAME="other"), settings)


NAMES = ("engine", "service_urls", "service_account")


@pytest.mark.parametrize(
    "settings",
    [
        Settings(secret_keys=()),
        Settings(engine="cloud-tasks", service_urls=SETTINGS.service_urls, secret_keys=()),
        Settings(service_account=ACCOUNT, secret_keys=()),
        Settings(
            engine="cloud-tasks",
            service_urls=SETTINGS.service_urls,
            secret_keys=(),
            service_account=ACCOUNT,
            require_signature=True,
        ),
    ],
)
def test_neither_key_nor_account_is_an_error(settings: Settings) -> None:
    """Without keys, and without an account and the URL of this service, the middleware can't be created."""
    with pytest.raises(SecretKeyMissingError, match=r"DEFERRED_(SERVICE_ACCOUNT|REQUIRE_SIGNATURE)"):
        Authenticator(settings, CLOUD_RUN)


def test_the_audience_may_be_another() -> None:
    """DEFERRED_AUDIENCE replaces the URL of the service as the audience."""
    settings = Settings(
        engine="cloud-tasks", service_urls=SETTINGS.service_urls, service_account=ACCOUNT, audience="shop-tasks"
    )

    assert check_of(with_token(GOOGLES.token(aud="shop-tasks")), settings) is None
    assert check_of(with_token(GOOGLES.token()), settings) == "token-audience"


def test_certificates_are_kept(server: CertificateServer) -> None:
    """The certificates are fetched once, not for each task."""
    authenticator = Authenticator(SETTINGS, CLOUD_RUN)
    for _ in range(20):
        authenticator.body_of(with_token(GOOGLES.token()))

    assert server.asked == 1


def test_a_new_key_of_googles_is_found(server: CertificateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token with a new key makes the process fetch the certificates again, at most once in a minute."""
    now = [1000.0]
    monkeypatch.setattr(oidc, "monotonic", lambda: now[0])
    new = SigningKey("google-2")
    assert check_of(with_token(GOOGLES.token())) is None
    server.certificates = {GOOGLES.key_id: GOOGLES.certificate, new.key_id: new.certificate}

    assert check_of(with_token(new.token())) == "token-key"
    now[0] += 61
    assert check_of(with_token(new.token())) is None
    assert server.asked == 2


def test_without_certificates_nothing_runs(server: CertificateServer, caplog: pytest.LogCaptureFixture) -> None:
    """If Google's certificates can't be fetched, the task is refused, the log says why, and the next fetch helps."""
    server.status = 500
    assert check_of(with_token(GOOGLES.token())) == "token-certificates"
    assert "can't be fetched" in caplog.text

    server.status = 200
    deadline = time.monotonic() + 30
    while check_of(with_token(GOOGLES.token())) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_old_certificates_last_while_google_is_away(server: CertificateServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the certificates expire and can't be fetched again, the old ones are used."""
    now = [1000.0]
    monkeypatch.setattr(oidc, "monotonic", lambda: now[0])
    assert check_of(with_token(GOOGLES.token())) is None
    server.status = 503
    now[0] += 7200

    assert check_of(with_token(GOOGLES.token())) is None


def test_no_forged_request_runs(monkeypatch: pytest.MonkeyPatch, server: CertificateServer) -> None:
    """Of many forged tokens and requests none runs, and Google is asked for its certificates once or twice."""
    monkeypatch.setattr(logging.getLogger("deferred_middleware"), "disabled", True)
    logging.getLogger("deferred_middleware").setLevel(logging.CRITICAL)
    monkeypatch.setattr(process, "_deployment", CLOUD_RUN)
    app = DeferredMiddleware(lambda environ, start: [], settings=SETTINGS)
    body = payload.dumps(call(sample.note, "forged"), 5)
    choose = random.Random(17)
    makers = [make for make, _ in REFUSED.values()]
    tokens = [make() for make in makers]
    valid = GOOGLES.token()
    statuses: set[str] = set()
    try:
        for number in range(FORGED):
            token = _spoilt(valid, choose) if number % 2 else choose.choice(tokens)
            changes: dict[str, Any] = {"HTTP_AUTHORIZATION": choose.choice(("Bearer ", "bearer ", "")) + token}
            if number % 7 == 0:
                changes |= {"HTTP_X_DEFERRED_SIGNATURE": "v1;k=" + "0" * 207}
            app(by_url(body, **changes), lambda status, *_: statuses.add(status))  # type: ignore[arg-type]
    finally:
        logging.getLogger("deferred_middleware").setLevel(logging.NOTSET)

    assert sample.ran == []
    assert statuses == {"403 Forbidden"}
    assert server.asked <= 2
    app(by_url(body, HTTP_AUTHORIZATION=f"Bearer {valid}"), lambda status, *_: statuses.add(status))  # type: ignore[arg-type]
    assert len(sample.ran) == 1


def _spoilt(token: str, choose: random.Random) -> str:
    """Return a token with one character of its content changed. The last one of a part may have unused bits."""
    while True:
        place = choose.randrange(len(token))
        if token[place] == "." or token[place + 1 : place + 2] in (".", ""):
            continue
        other = choose.choice("ABCDEFGHabcdefgh01234567-_")
        if other != token[place]:
            return token[:place] + other + token[place + 1 :]

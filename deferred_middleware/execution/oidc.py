"""Check the token that Cloud Tasks sends with a task: an OIDC token of a service account, signed by Google.

``google-auth`` verifies the signature, the audience and the times. This module checks the issuer and the service
account, and keeps Google's certificates for as long as Google allows. A token with an unknown key makes it fetch them
again, but not more than once in a minute: anybody can send such tokens.

Importing this module imports ``google-auth``.
"""

from __future__ import annotations

import json
import os
import re
import threading
from typing import TYPE_CHECKING, Any, Final

from google.auth import exceptions, jwt
from google.auth.transport import requests as transport

from deferred_middleware.errors import UntrustedRequestError
from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.wire.monotonic import monotonic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed.wsgi import WSGIEnvironment

logger: Final = get_logger("deferred_middleware")

CERTIFICATES_URL: Final = "https://www.googleapis.com/oauth2/v1/certs"
"""Google's certificates, by key ID (google-auth: ``google/oauth2/id_token.py``)."""
ISSUERS: Final = ("https://accounts.google.com", "accounts.google.com")
CLOCK_SKEW_SECONDS: Final = 30
"""By how much this machine's clock may differ from Google's."""

_FETCH_SECONDS: Final = 5.0
_MIN_SECONDS_BETWEEN_FETCHES: Final = 60.0
_DEFAULT_MAX_AGE_SECONDS: Final = 3600.0
_MAX_TOKEN_LENGTH: Final = 8192
_MAX_AGE: Final = re.compile(r"max-age=([0-9]{1,9})")
_TOKEN: Final = re.compile(r"[Bb]earer +([A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_=-]*)")
_REMOVED_SIGNATURE: Final = "SIGNATURE_REMOVED_BY_GOOGLE"


class CertificatesError(Exception):
    """Google's certificates can't be fetched."""


class Certificates:
    """Google's certificates, by key ID."""

    def __init__(self, url: str = CERTIFICATES_URL) -> None:
        self._url = url
        self._lock = threading.Lock()
        # Guarded by the lock; the times are monotonic seconds.
        self._found: Mapping[str, str] = {}
        self._expires = 0.0
        self._next_fetch = 0.0
        os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()

    def for_key(self, key_id: str) -> str | None:
        """Return the certificate of a key; None if Google has none. Raises :class:`CertificatesError`."""
        with self._lock:
            now = monotonic()
            if (now >= self._expires or key_id not in self._found) and now >= self._next_fetch:
                self._next_fetch = now + _MIN_SECONDS_BETWEEN_FETCHES
                self._fetch(now)
            if not self._found:
                raise CertificatesError("Google's certificates could not be fetched a moment ago")
            return self._found.get(key_id)

    def _fetch(self, now: float) -> None:
        try:
            response = transport.Request()(self._url, method="GET", timeout=_FETCH_SECONDS)
            found = json.loads(response.data) if response.status == 200 else None
        except (exceptions.TransportError, ValueError, OSError) as error:
            self._failed(str(error), now)
            return
        if not isinstance(found, dict) or not all(isinstance(text, str) for pair in found.items() for text in pair):
            self._failed(f"the answer has the status {response.status}", now)
            return
        max_age = _MAX_AGE.search(str(response.headers.get("cache-control", "")))
        self._found = found
        self._expires = now + (float(max_age[1]) if max_age else _DEFAULT_MAX_AGE_SECONDS)

    def _failed(self, problem: str, now: float) -> None:
        """Log that the certificates can't be fetched.

        The old ones stay valid: Google announces new ones before it uses them.
        """
        logger.error("Google's certificates can't be fetched from %s: %s", self._url, problem)
        self._next_fetch = now + (_MIN_SECONDS_BETWEEN_FETCHES if self._found else 1.0)


GOOGLE: Final = Certificates()
"""The process's certificates."""


class TokenVerifier:
    """Verifies the tokens of one service account for one audience."""

    def __init__(self, service_account: str, audience: str) -> None:
        self._service_account = service_account
        self._audience = audience
        self._certificates = GOOGLE

    def verify(self, environ: WSGIEnvironment) -> None:
        """Raise :class:`UntrustedRequestError` unless the request has a valid token. The error says what is wrong."""
        token = _token_in(environ)
        try:
            key_id = jwt.decode_header(token).get("kid")  # type: ignore[no-untyped-call] # of google-auth
            certificate = self._certificates.for_key(key_id) if isinstance(key_id, str) else None
            if certificate is None:
                raise _refusal("token-key", "its token is not signed by a key of Google's")
            claims = jwt.decode(  # type: ignore[no-untyped-call] # of google-auth
                token,
                certs={key_id: certificate},
                audience=self._audience,
                clock_skew_in_seconds=CLOCK_SKEW_SECONDS,
            )
        except CertificatesError as error:
            raise _refusal("token-certificates", f"its token can't be checked: {error}") from None
        except (exceptions.GoogleAuthError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise self._refusal_for(str(error)) from None
        self._check(claims)

    def _refusal_for(self, problem: str) -> UntrustedRequestError:
        """Return the error for an error of google-auth, whose text may hold the token."""
        if "wrong audience" in problem:
            return _refusal(
                "token-audience",
                f"its token is for another audience than {self._audience} (DEFERRED_AUDIENCE, or the URL of this "
                "service in DEFERRED_SERVICE_URLS)",
            )
        return _refusal(*_problem(problem))

    def _check(self, claims: Mapping[str, Any]) -> None:
        """Check the claims of a token that Google has signed."""
        if claims.get("iss") not in ISSUERS:
            raise _refusal("token-issuer", "its token has another issuer than Google")
        if claims.get("email") != self._service_account:
            raise _refusal(
                "token-account",
                f"its token is of another service account than {self._service_account} (DEFERRED_SERVICE_ACCOUNT)",
            )
        if claims.get("email_verified") is not True:
            raise _refusal("token-account", "its token says that the e-mail address of its account is not verified")


def _token_in(environ: WSGIEnvironment) -> str:
    header = str(environ.get("HTTP_AUTHORIZATION", ""))
    if not header:
        raise _refusal("token-missing", "it has no token, and there are no DEFERRED_SECRET_KEYS to check a signature")
    found = _TOKEN.fullmatch(header) if len(header) <= _MAX_TOKEN_LENGTH else None
    if found is None:
        raise _refusal("token-format", "its Authorization header is not a bearer token")
    if found[1].endswith(f".{_REMOVED_SIGNATURE}"):
        raise _refusal(
            "token-signature-removed",
            "Cloud Run has checked its token and removed the token's signature, so that it can't be checked here. Set "
            "DEFERRED_SECRET_KEYS, or turn off Cloud Run's own check (--no-invoker-iam-check)",
        )
    return found[1]


def _problem(text: str) -> tuple[str, str]:
    """Return the check that failed and its description, for an error of google-auth, whose text may hold the token."""
    lower = text.lower()
    if "too early" in lower:
        return "token-early", (
            f"its token was issued more than {CLOCK_SKEW_SECONDS} seconds in the future; compare the clock of this "
            "machine with Google's"
        )
    if "expired" in lower:
        return "token-expired", "its token has expired"
    if "algorithm" in lower:
        return "token-algorithm", "its token is signed with another algorithm than RS256"
    if "verify token signature" in lower:
        return "token-signature", "the signature of its token is wrong"
    return "token-format", "its token is malformed"


def _refusal(check: str, message: str) -> UntrustedRequestError:
    return UntrustedRequestError(check, message)

"""The tokens that tasks carry, signed by a key of this server's own, and what verifies them.

OIDC
    A token like Google's (https://cloud.google.com/docs/authentication/token-types#id), but for its issuer: this
    server. ``/.well-known/openid-configuration`` leads to the certificates, as JWKS and as X.509 like Google's. So
    ``google.oauth2.id_token.verify_token(token, request, audience, certs_url=…)`` accepts it.

OAuth
    An access token is opaque, and only Google can issue one that Google's APIs accept. A task with an OAuth token
    carries a text in its place from which a test can read the service account and the scope.

The key is in the data directory, readable by nobody else. It is made when it is first needed.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any, Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.files import replacing
from deferred_middleware.server.store.records import ClaimedTask

KEY_FILE: Final = "oidc.key"
"""Name of the key's file in the data directory."""
CONFIGURATION_PATH: Final = "/.well-known/openid-configuration"
JWKS_PATH: Final = "/oauth2/v3/certs"
CERTIFICATES_PATH: Final = "/oauth2/v1/certs"
"""The paths of Google's certificates at www.googleapis.com."""
LIFETIME_SECONDS: Final = 3600
DEFAULT_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
"""[D] OAuthToken.scope"""
OAUTH_PREFIX: Final = "emulated-access-token."

_MODE: Final = 0o600
_KEY_BITS: Final = 2048
_MAX_KEY_FILE_BYTES: Final = 64 * 1024
_CERTIFICATE_DAYS: Final = 3650


class TokenSigner:
    """Makes tokens with the key in ``directory``. ``issuer`` is the URL at which this server answers."""

    def __init__(self, directory: Path, issuer: str) -> None:
        self.issuer: str = issuer.rstrip("/")
        self._path = directory / KEY_FILE
        # Guards the key, which is loaded once.
        self._lock = threading.Lock()
        self._key: Any = None

    def authorization(self, task: ClaimedTask) -> str | None:
        """Return the value of a task's ``Authorization`` header; None if the task has no token."""
        origin = task.origin
        if origin is None or origin.token is None:
            return None
        if origin.token == "oidc":
            # [D] OidcToken.audience: "If not specified, the URI specified in target will be used."
            return f"Bearer {self.id_token(origin.email, origin.purpose or task.url)}"
        content = {"email": origin.email, "scope": origin.purpose or DEFAULT_SCOPE}
        return f"Bearer {OAUTH_PREFIX}{_encoded(json.dumps(content).encode())}"

    def id_token(self, email: str, audience: str) -> str:
        """Return an OIDC token for a service account."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        key = self._loaded()
        now = int(time.time())
        subject = str(int(hashlib.sha256(email.encode()).hexdigest()[:18], 16)).zfill(21)[:21]
        header = {"alg": "RS256", "kid": self._key_id(key), "typ": "JWT"}
        claims = {
            "aud": audience,
            "azp": subject,
            "email": email,
            "email_verified": True,
            "exp": now + LIFETIME_SECONDS,
            "iat": now,
            "iss": self.issuer,
            "sub": subject,
        }
        signed = ".".join(_encoded(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
        signature: bytes = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{_encoded(signature)}"

    def document(self, path: str) -> dict[str, Any] | None:
        """Return the JSON at one of the three paths; None at any other."""
        if path == CONFIGURATION_PATH:
            return self._configuration()
        if path == JWKS_PATH:
            return {"keys": [self._jwk()]}
        if path == CERTIFICATES_PATH:
            key = self._loaded()
            return {self._key_id(key): self._certificate(key)}
        return None

    def _configuration(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "jwks_uri": f"{self.issuer}{JWKS_PATH}",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "claims_supported": ["aud", "azp", "email", "email_verified", "exp", "iat", "iss", "sub"],
        }

    def _jwk(self) -> dict[str, str]:
        key = self._loaded()
        numbers = key.public_key().public_numbers()
        return {
            "kty": "RSA",
            "alg": "RS256",
            "use": "sig",
            "kid": self._key_id(key),
            "n": _encoded(_big_endian(numbers.n)),
            "e": _encoded(_big_endian(numbers.e)),
        }

    def _certificate(self, key: Any) -> str:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import NameOID

        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cloud-tasks-emulator")])
        # The same for the same key, so that a client may compare them.
        since = datetime.datetime(2026, 1, 1)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(int(self._key_id(key), 16))
            .not_valid_before(since)
            .not_valid_after(since + datetime.timedelta(days=_CERTIFICATE_DAYS))
            .sign(key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _key_id(self, key: Any) -> str:
        return hashlib.sha256(_big_endian(key.public_key().public_numbers().n)).hexdigest()[:32]

    def _loaded(self) -> Any:
        with self._lock:
            if self._key is None:
                self._key = self._load()
            return self._key

    def _load(self) -> Any:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        try:
            if not os.path.lexists(self._path):
                made = rsa.generate_private_key(public_exponent=65537, key_size=_KEY_BITS)
                content = made.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
                with replacing(self._path, mode=_MODE) as stream:
                    stream.write(content)
                return made
            # O_NONBLOCK: if someone put a pipe there, opening it must not block.
            with open(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as stream:
                found = os.fstat(stream.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                    raise ServerError(f"{self._path} is not a file of yours; move it away to have a new key made.")
                if stat.S_IMODE(found.st_mode) & 0o177:
                    os.fchmod(stream.fileno(), _MODE)
                key: Any = serialization.load_pem_private_key(stream.read(_MAX_KEY_FILE_BYTES), password=None)
            if not isinstance(key, rsa.RSAPrivateKey):
                raise ValueError("it is not an RSA key")
            return key
        except (OSError, ValueError, TypeError) as error:
            raise ServerError(
                f"{self._path} can't be used ({error}); put a copy of the key back, or remove the file to have a new "
                "key made."
            ) from error


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _big_endian(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")

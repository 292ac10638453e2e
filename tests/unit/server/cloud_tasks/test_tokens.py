"""The tokens of tasks: Google's own library accepts them."""

from __future__ import annotations

import base64
import dataclasses
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from google.auth import exceptions
from google.oauth2 import id_token

from deferred_middleware.errors import ServerError
from deferred_middleware.server.cloud_tasks.tokens import (
    CERTIFICATES_PATH,
    CONFIGURATION_PATH,
    JWKS_PATH,
    KEY_FILE,
    OAUTH_PREFIX,
    TokenSigner,
)
from deferred_middleware.server.store.records import HTTP_TARGET, ClaimedTask, CloudOrigin
from tests.support.storing import TASK

ISSUER = "http://emulator:8123"
URL = "https://example.com/work?a=b"


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> TokenSigner:
    """Return a signer with a new key."""
    return TokenSigner(tmp_path_factory.mktemp("data"), f"{ISSUER}/")


def task(**origin: Any) -> ClaimedTask:
    """Return a task with a token."""
    return dataclasses.replace(TASK, url=URL, target=HTTP_TARGET, origin=CloudOrigin(**origin))


class Answer:
    """What Google's library gets when it asks for certificates."""

    status = 200

    def __init__(self, content: object) -> None:
        self.data = json.dumps(content).encode()


def ask(signer: TokenSigner) -> Any:
    """Return the function with which Google's library asks for certificates."""

    def request(url: str, method: str = "GET", **_: object) -> Answer:
        return Answer(signer.document(url.removeprefix(ISSUER)))

    return request


def test_googles_library_verifies_a_token(signer: TokenSigner) -> None:
    """A token has the claims of Google's, and the certificate verifies it."""
    value = signer.authorization(task(token="oidc", email="me@example.com", purpose="https://example.com"))
    assert value is not None
    kind, _, token = value.partition(" ")
    assert kind == "Bearer"
    claims = id_token.verify_token(token, ask(signer), "https://example.com", certs_url=f"{ISSUER}{CERTIFICATES_PATH}")
    assert claims["iss"] == ISSUER
    assert (claims["email"], claims["email_verified"]) == ("me@example.com", True)
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["sub"].isdecimal()


def test_the_key_as_jwks_is_that_of_the_certificate(signer: TokenSigner) -> None:
    """The two forms have the same key, under the same ID."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    certificates, keys = signer.document(CERTIFICATES_PATH), signer.document(JWKS_PATH)
    assert certificates is not None
    assert keys is not None
    ((key_id, pem),) = certificates.items()
    (jwk,) = keys["keys"]
    public = x509.load_pem_x509_certificate(pem.encode()).public_key()
    assert isinstance(public, RSAPublicKey)
    number = int.from_bytes(base64.urlsafe_b64decode(jwk["n"] + "=="), "big")
    assert (jwk["kid"], number) == (key_id, public.public_numbers().n)


def test_the_default_audience_is_the_tasks_url(signer: TokenSigner) -> None:
    """Without an audience, the token is for the URL; another audience is refused."""
    token = (signer.authorization(task(token="oidc", email="a@b.c")) or "").removeprefix("Bearer ")
    verify = id_token.verify_token
    assert verify(token, ask(signer), URL, certs_url=f"{ISSUER}{CERTIFICATES_PATH}")["aud"] == URL
    with pytest.raises((ValueError, exceptions.GoogleAuthError)):
        verify(token, ask(signer), "https://elsewhere", certs_url=f"{ISSUER}{CERTIFICATES_PATH}")


def test_a_token_of_another_key_is_refused(signer: TokenSigner, tmp_path: Path) -> None:
    """Only this server's key signs its tokens."""
    other = TokenSigner(tmp_path, ISSUER).id_token("a@b.c", URL)
    with pytest.raises((ValueError, exceptions.GoogleAuthError)):
        id_token.verify_token(other, ask(signer), URL, certs_url=f"{ISSUER}{CERTIFICATES_PATH}")


def test_an_oauth_token_says_what_it_stands_for(signer: TokenSigner) -> None:
    """It is no token that an API of Google would take, and no OIDC token."""
    value = signer.authorization(task(token="oauth", email="me@example.com")) or ""
    content = value.removeprefix(f"Bearer {OAUTH_PREFIX}")
    assert json.loads(base64.urlsafe_b64decode(content + "=" * (-len(content) % 4))) == {
        "email": "me@example.com",
        "scope": "https://www.googleapis.com/auth/cloud-platform",
    }


def test_other_tasks_have_no_token(signer: TokenSigner) -> None:
    """A task without one, and a task of the taskqueue API, get no header."""
    assert signer.authorization(task()) is None
    assert signer.authorization(TASK) is None


def test_the_configuration(signer: TokenSigner) -> None:
    """The issuer in the configuration is that of the tokens, and leads to the key."""
    found = signer.document(CONFIGURATION_PATH)
    assert found is not None
    assert (found["issuer"], found["jwks_uri"]) == (ISSUER, f"{ISSUER}{JWKS_PATH}")
    assert signer.document("/elsewhere") is None


def test_the_key_is_kept_and_closed_to_others(tmp_path: Path) -> None:
    """The next server has the same key, and nobody else can read it."""
    first = TokenSigner(tmp_path, ISSUER)
    document = first.document(JWKS_PATH)
    path = tmp_path / KEY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert TokenSigner(tmp_path, ISSUER).document(JWKS_PATH) == document
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", ["text", "another kind", "directory", "link"])
def test_a_key_that_can_not_be_used(tmp_path: Path, damage: str) -> None:
    """The error names the file and the way out."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    path = tmp_path / KEY_FILE
    if damage == "text":
        path.write_text("no key")
    elif damage == "another kind":
        path.write_bytes(
            ed25519.Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    elif damage == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ServerError, match=KEY_FILE):
        TokenSigner(tmp_path, ISSUER).id_token("a@b.c", URL)

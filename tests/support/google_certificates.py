"""Google's side of a token: a server with certificates, and the private key that signs tokens with one of them."""

from __future__ import annotations

import base64
import datetime
import http.server
import json
import threading
import time
from collections.abc import Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt

from tests.support.threadedserver import ThreadedHTTPServer

ACCOUNT = "tasks@shop.iam.gserviceaccount.com"
AUDIENCE = "https://shop.example.com"


class SigningKey:
    """An RSA key with a certificate, as Google's keys have one."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
        start = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(private.public_key())
            .serial_number(1)
            .not_valid_before(start)
            .not_valid_after(start + datetime.timedelta(days=36500))
            .sign(private, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM).decode()
        pem = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._signer: Any = crypt.RSASigner.from_string(pem, key_id)  # type: ignore[no-untyped-call]

    def token(self, header: Mapping[str, Any] | None = None, **changes: Any) -> str:
        """Return a token as Cloud Tasks sends it, with ``changes`` of its claims; None leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": "https://accounts.google.com",
            "aud": AUDIENCE,
            "email": ACCOUNT,
            "email_verified": True,
            "iat": now,
            "exp": now + 3600,
            "sub": "1234",
            **changes,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        signed: bytes = jwt.encode(self._signer, claims, header=dict(header or {}))  # type: ignore[no-untyped-call]
        return signed.decode()


def unsigned(token: str, **header: Any) -> str:
    """Return a token whose header has other values, without a valid signature."""
    head, claims, signature = token.split(".")
    decoded = json.loads(base64.urlsafe_b64decode(head + "=="))
    changed = base64.urlsafe_b64encode(json.dumps({**decoded, **header}).encode()).decode().rstrip("=")
    return f"{changed}.{claims}.{signature}"


class CertificateServer:
    """Google's certificate endpoint, over HTTP, as a context manager."""

    def __init__(self, *keys: SigningKey) -> None:
        self.certificates = {key.key_id: key.certificate for key in keys}
        self.asked = 0
        self.status = 200
        self.max_age = 3600
        endpoint = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                endpoint.asked += 1
                body = json.dumps(endpoint.certificates).encode()
                self.send_response(endpoint.status)
                self.send_header("Cache-Control", f"public, max-age={endpoint.max_age}, must-revalidate")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadedHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/oauth2/v1/certs"

    def __enter__(self) -> CertificateServer:
        """Start the server."""
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()

"""The signature of a task: a request header that binds everything the handler relies on to a secret key.

The header is detached from the payload, so that versions with and without signatures read each other's payloads::

    X-Deferred-Signature: v1;k=<key id>;i=<issued>;e=<expires>;n=<nonce>;t=<named>;b=<SHA-256 of the body>;s=<MAC>

Times are seconds since 1970; ``t`` is 1 where the task was named before it was added, and its name is signed. The MAC
is HMAC-SHA256 over the header itself up to ``;s=`` and over method, application, path, query, queue, that name and all
other ``X-Deferred-*`` request headers. Each of these fields is told apart by its length, so that no two requests have
the same bytes to sign. Hashes are lower-case hexadecimal, which leaves no second spelling of a signature.

From each key subkeys are derived, one for each use, as HKDF does it (RFC 5869). The key's identifier is the hash of a
subkey that nothing else uses, and tells nothing about the key. A version other than ``v1`` is refused: a later one
will have to be understood everywhere before anybody writes it.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import secrets
import struct
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from deferred_middleware import protocol
from deferred_middleware.errors import SecretKeyMissingError, UntrustedRequestError
from deferred_middleware.settings import current_deployment, current_settings

if TYPE_CHECKING:
    from deferred_middleware.options import Options
    from deferred_middleware.secretkeys import SecretKey

VERSION: Final = "v1"
LIFETIME_SECONDS: Final = (protocol.MAX_TASK_AGE_DAYS + 1) * 24 * 3600
"""How long a signature holds from its task's ETA: as long as the platform keeps a task, and a day for clocks."""
LOCAL_LIFETIME_SECONDS: Final = 3650 * 24 * 3600
"""The same on the local server, which keeps a task for as long as it waits, and whose key never leaves the machine."""

_SALT: Final = b"deferred_middleware"
_SIGNING: Final = b"deferred_middleware v1: sign tasks"
_IDENTIFYING: Final = b"deferred_middleware v1: identify the key"


def derive(key: SecretKey, purpose: bytes) -> bytes:
    """Return the 32-byte subkey of ``key`` for one purpose (RFC 5869, for output of one block)."""
    extracted = hmac.digest(_SALT, key.to_bytes(), "sha256")
    return hmac.digest(extracted, purpose + b"\x01", "sha256")


def encode(fields: Sequence[bytes]) -> bytes:
    """Return ``fields`` as one text that no other list of fields has: their number, their lengths, themselves."""
    return struct.pack(f">{len(fields) + 1}Q", len(fields), *map(len, fields)) + b"".join(fields)


def digest_of(body: bytes) -> str:
    """Return the hash of a body as a signature has it."""
    return hashlib.sha256(body).hexdigest()


def path_of(url: str) -> bytes:
    """Return the bytes of a URL's path as a WSGI server hands them on: percent-decoded."""
    return urllib.parse.unquote_to_bytes(url)


class Keyring:
    """The keys of a process, newest first: the first signs, all verify."""

    def __init__(self, keys: Iterable[SecretKey], application: str) -> None:
        self._subkeys: dict[str, bytes] = {}
        for key in keys:
            key_id = hashlib.sha256(derive(key, _IDENTIFYING)).hexdigest()[:16]
            self._subkeys[key_id] = derive(key, _SIGNING)
        self._application = application.encode()

    def __bool__(self) -> bool:
        return bool(self._subkeys)

    @property
    def key_ids(self) -> list[str]:
        """The keys' identifiers, newest first."""
        return list(self._subkeys)

    def sign(
        self,
        *,
        path: bytes,
        queue: str,
        name: str | None,
        headers: Mapping[str, str],
        body: bytes,
        not_before: float,
        lifetime_seconds: float,
        now: float,
    ) -> str:
        """Return the signature of a task that is posted to ``path``, as the value of its header.

        ``name`` is the task's, if it is known yet; ``not_before`` the time, in seconds since 1970, from which on
        it may run. Of ``headers`` only ours are signed.
        """
        key_id = next(iter(self._subkeys))
        expires = int(max(now, not_before) + lifetime_seconds)
        claims = (
            f"{VERSION};k={key_id};i={int(now)};e={expires};n={secrets.token_hex(12)}"
            f";t={0 if name is None else 1};b={digest_of(body)}"
        )
        ours = {protocol.environ_key(header): value for header, value in headers.items()}
        signed = _encode_headers({key: value.encode() for key, value in ours.items() if _is_signed(key)})
        mac = self._mac(self._subkeys[key_id], claims, "POST", path, "", queue, name or "", signed)
        return f"{claims};s={mac}"

    def verify(
        self,
        signature: str,
        *,
        method: str,
        path: bytes,
        query: str,
        queue: str,
        name: str,
        environ: Mapping[str, object],
        now: float,
    ) -> str:
        """Return the hash that the body has to have, for which see :func:`digest_of`.

        ``name`` is the task's, whoever chose it; our other headers are taken from the WSGI ``environ``. Raises
        :class:`UntrustedRequestError`.
        """
        claims, _, mac = signature.rpartition(";s=")
        parts = claims.split(";")
        if len(parts) != 7 or parts[0] != VERSION or not signature.isascii():
            if re.match(r"v[0-9]+;", signature) and not signature.startswith(f"{VERSION};"):
                raise UntrustedRequestError("signature-version", f"its signature is not of the version {VERSION}")
            raise UntrustedRequestError("signature-format", "its signature is malformed")
        subkey = self._subkeys.get(parts[1][2:])
        if subkey is None:
            raise UntrustedRequestError("signature-key", "its signature was made with a key that is not known here")
        named = parts[5] == "t=1"
        keys = [key for key in environ if key.startswith(_OUR_PREFIX) and _is_signed(key)]
        signed = _encode_headers({key: str(environ[key]).encode("latin-1") for key in keys}) if keys else b""
        try:
            expected = self._mac(subkey, claims, method, path, query, queue, name if named else "", signed)
        except UnicodeEncodeError:
            raise UntrustedRequestError("signature", "what its signature signs is not what it holds") from None
        if not hmac.compare_digest(mac, expected):
            raise UntrustedRequestError("signature", "its signature does not fit")
        # From here on the claims are ours, and as we write them.
        if int(parts[3][2:]) < now:
            raise UntrustedRequestError("signature-expired", "its signature has expired")
        return parts[6][2:]

    def _mac(
        self, subkey: bytes, claims: str, method: str, path: bytes, query: str, queue: str, name: str, headers: bytes
    ) -> str:
        message = encode(
            (
                claims.encode("ascii"),
                method.encode("ascii"),
                self._application,
                path,
                query.encode("latin-1"),
                queue.encode("ascii"),
                name.encode("ascii"),
                headers,
            )
        )
        return hmac.digest(subkey, message, "sha256").hex()


@functools.lru_cache(maxsize=8)
def keyring_for(keys: tuple[SecretKey, ...], application: str) -> Keyring:
    """Return the keyring of ``keys``; each is made once."""
    return Keyring(keys, application)


def signature_header(
    options: Options, *, queue: str, name: str | None, url: str, headers: Mapping[str, str], body: bytes
) -> dict[str, str]:
    """Return the header that signs a task, or none if the process has no key.

    ``name`` is the task's, if it is known yet, ``url`` the path that it is posted to, ``headers`` all the others.
    Raises :class:`SecretKeyMissingError` where a task without a signature would not run.
    """
    settings, deployment = current_settings(), current_deployment()
    keyring = keyring_for(settings.secret_keys, deployment.application)
    if not keyring:
        if settings.require_signature:
            raise SecretKeyMissingError(on_app_engine_standard=deployment.on_app_engine_standard)
        return {}
    lifetime = LOCAL_LIFETIME_SECONDS if deployment.on_local_server else LIFETIME_SECONDS
    age_limit = options.retry_options.task_age_limit if options.retry_options else None
    signature = keyring.sign(
        path=path_of(url),
        queue=queue,
        name=name,
        headers=headers,
        body=body,
        not_before=options.eta_posix or 0.0,
        lifetime_seconds=max(lifetime, age_limit or 0),
        now=time.time(),
    )
    return {protocol.SIGNATURE_HEADER: signature}


_OUR_PREFIX: Final = protocol.environ_key(protocol.OUR_HEADER_PREFIX)
_UNSIGNED: Final = frozenset(
    protocol.environ_key(header) for header in (protocol.SIGNATURE_HEADER, protocol.SERVER_TOKEN_HEADER)
)


def _is_signed(key: str) -> bool:
    """Tell whether a header is signed, by its key in a WSGI ``environ``."""
    return key.startswith(_OUR_PREFIX) and key not in _UNSIGNED


def _encode_headers(headers: Mapping[str, bytes]) -> bytes:
    if not headers:
        return b""
    fields: list[bytes] = []
    for key in sorted(headers):
        # The server strips a value's surrounding blanks.
        fields += (key.encode("latin-1"), headers[key].strip(b" \t"))
    return encode(fields)

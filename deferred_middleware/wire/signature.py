"""Sign a task with a request header that binds everything the handler relies on to a secret key.

The header is detached from the payload, so that versions with and without signatures read each other's payloads::

    X-Deferred-Signature: v1;k=<key id>;i=<issued>;e=<expires>;n=<nonce>;t=<named>;b=<SHA-256 of the body>;s=<MAC>

Times are seconds since 1970, in ten digits. ``t`` is 1 if the task was named before it was added; its name is signed
then. The MAC is HMAC-SHA256 over the method, application, path, query, queue and all other ``X-Deferred-*`` request
headers, and over the header itself up to ``;s=`` and that name. Each field is preceded by its length, so that no two
requests have the same bytes to sign. Hashes are lower-case hexadecimal, so that a signature has one spelling only.

The fields that many tasks have in common come first, so that a keyring can keep the state of the MAC after them.

A keyring derives subkeys from each key, one for each use, as HKDF does (RFC 5869). The key's identifier is the hash of
a subkey that nothing else uses, and reveals nothing about the key. Any version other than ``v1`` is refused: before
anybody writes a later version, every reader has to understand it.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
import re
import struct
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from deferred_middleware.errors import UntrustedRequestError
from deferred_middleware.wire import protocol

VERSION: Final = "v1"
LIFETIME_SECONDS: Final = (protocol.MAX_TASK_AGE_DAYS + 1) * 24 * 3600
"""How long a signature is valid after its task's ETA: as long as the platform keeps a task, and a day for clocks."""
LOCAL_LIFETIME_SECONDS: Final = 3650 * 24 * 3600
"""The same on the local server, which keeps a waiting task for any time, and whose key never leaves the machine."""
LONGEST_LIFETIME_SECONDS: Final = 100 * 365 * 24 * 3600
"""The longest lifetime, whatever age a task may reach: times have ten digits."""

_SALT: Final = b"deferred_middleware"
_SIGNING: Final = b"deferred_middleware v1: sign tasks"
_IDENTIFYING: Final = b"deferred_middleware v1: identify the key"

# Every part of a signature has a fixed length, so that its place is fixed too.
LENGTH: Final = 212
_KEY_ID: Final = slice(5, 21)
_EXPIRES: Final = slice(37, 47)
_IS_NAMED: Final = slice(77, 78)
_BODY_DIGEST: Final = slice(81, 145)
_CLAIMS: Final = slice(0, 145)
"""What the MAC covers of the signature itself."""
_MAC: Final = slice(145, 212)
"""The MAC with its ``;s=``."""
_PATTERN: Final = r"v1;k=[0-9a-f]{16};i=[0-9]{10};e=[0-9]{10};n=[0-9a-f]{24};t=[01];b=[0-9a-f]{64};s=[0-9a-f]{64}"
_OWN_FIELDS: Final = struct.Struct(">3Q")  # as encode() writes the number and the lengths of two fields
_BLOCK_BYTES: Final = 64  # of SHA-256
_INNER_PAD: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD: Final = bytes(byte ^ 0x5C for byte in range(256))
_MAX_FAMILIAR_KEYS: Final = 500
"""How many keys of ``environ`` a keyring remembers, before it takes in those of one more request."""
_MAX_MAC_STATES: Final = 128
"""How many MAC states a keyring keeps. A server limits the size of a request's headers, and so the size of a state."""

_OUR_PREFIX: Final = protocol.environ_key(protocol.OUR_HEADER_PREFIX)
_SIGNATURE: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)
_NAMESPACE: Final = protocol.environ_key(protocol.NAMESPACE_HEADER)
_UNSIGNED: Final = frozenset({_SIGNATURE, protocol.environ_key(protocol.SERVER_TOKEN_HEADER)})

_Headers = tuple[tuple[str, str], ...]


class KeyMaterial(Protocol):
    """A secret key, such as :class:`deferred_middleware.config.keys.SecretKey`."""

    def to_bytes(self) -> bytes:
        """Return the bytes of the key."""
        ...


def derive(key: KeyMaterial, purpose: bytes) -> bytes:
    """Return the 32-byte subkey of ``key`` for one purpose (RFC 5869, for output of one block)."""
    extracted = hmac.digest(_SALT, key.to_bytes(), "sha256")
    return hmac.digest(extracted, purpose + b"\x01", "sha256")


def encode(fields: Sequence[bytes]) -> bytes:
    """Return an encoding that no other list of fields has: the number of fields, their lengths, the fields."""
    return struct.pack(f">{len(fields) + 1}Q", len(fields), *map(len, fields)) + b"".join(fields)


def digest_of(body: bytes) -> str:
    """Return the hash of a body, as a signature holds it."""
    return hashlib.sha256(body).hexdigest()


def expiry_of(signature: str) -> float:
    """Return until when a signature is valid, in seconds since 1970. It must be one that was verified."""
    return float(signature[_EXPIRES])


def path_of(url: str) -> bytes:
    """Return the bytes of a URL's path as a WSGI server passes them to the app: percent-decoded."""
    return urllib.parse.unquote_to_bytes(url)


class Keyring:
    """The keys of a process, newest first: the newest key signs, and all keys verify."""

    def __init__(self, keys: Iterable[KeyMaterial], application: str) -> None:
        self._subkeys: dict[str, bytes] = {}
        for key in keys:
            key_id = hashlib.sha256(derive(key, _IDENTIFYING)).hexdigest()[:16]
            self._subkeys[key_id] = derive(key, _SIGNING)
        self._newest = next(iter(self._subkeys), "")
        self._application = application.encode()
        self._familiar_keys: set[str] = set()
        """Keys of ``environ`` that trusted requests had, none of them signed except the namespace's."""
        self._mac_for = functools.lru_cache(maxsize=_MAX_MAC_STATES)(self._mac_of_common_fields)

    def __bool__(self) -> bool:
        return bool(self._subkeys)

    @property
    def key_ids(self) -> list[str]:
        """The identifiers of the keys, newest first."""
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
        method: str = "POST",
    ) -> str:
        """Return the value of the signature header for a task that is posted to ``path``.

        ``name`` is the task's name if it is known already. ``not_before`` is the time from which on the task may run,
        in seconds since 1970. Of ``headers`` only our own are signed. Use another ``method`` to sign something that
        must never be accepted as a task.
        """
        signer = self.signer(path=path, queue=queue, headers=headers, lifetime_seconds=lifetime_seconds, method=method)
        return signer.sign(name, body, not_before, now)

    def signer(
        self, *, path: bytes, queue: str, headers: Mapping[str, str], lifetime_seconds: float, method: str = "POST"
    ) -> Signer:
        """Return a signer for tasks that have all these arguments in common; see :meth:`sign`."""
        # As the request's environ will have them.
        ours = {protocol.environ_key(header): value.encode().decode("latin-1") for header, value in headers.items()}
        mac = self._mac_for(self._newest, method, path.decode("latin-1"), "", queue, _our_headers(ours))
        return Signer(self._newest, mac, min(lifetime_seconds, LONGEST_LIFETIME_SECONDS))

    def verify(self, signature: str, environ: Mapping[str, Any], queue: str, name: str, now: float) -> str:
        """Return the hash that the request's body must have, see :func:`digest_of`.

        ``environ`` is the WSGI environment of the task's request. ``name`` is the task's name, whether the caller or
        the queue chose it. Raises :class:`UntrustedRequestError` if the signature is not valid for this request.
        """
        # A MAC that matches proves that we wrote the signature, so its format is checked only if the MAC differs.
        if len(signature) != LENGTH or not signature.isascii():
            raise _invalid(signature, "signature-format", "its signature is malformed")
        claims = signature[_CLAIMS]
        # One look at a set takes a third of the time of a look at each key.
        is_familiar = _NAMESPACE in environ and self._familiar_keys.issuperset(environ)
        headers = environ[_NAMESPACE] if is_familiar else _our_headers(environ)
        try:
            mac = self._mac_for(
                signature[_KEY_ID],
                environ["REQUEST_METHOD"],
                environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"],
                environ.get("QUERY_STRING", ""),
                queue,
                headers,
            )
            expected = mac.finish(claims, name if signature[_IS_NAMED] == "1" else "")
        except KeyError:
            raise _invalid(signature, "signature-key", "its signature was made with an unknown key") from None
        except UnicodeEncodeError:
            raise _invalid(signature, "signature", "its signature does not match the request") from None
        if not hmac.compare_digest(signature[_MAC], expected):
            raise _invalid(signature, "signature", "its signature does not match the request")
        if not is_familiar:
            self._remember_keys(environ, headers)
        if float(signature[_EXPIRES]) < now:
            raise UntrustedRequestError("signature-expired", "its signature has expired")
        return signature[_BODY_DIGEST]

    def _remember_keys(self, environ: Mapping[str, Any], headers: _Headers) -> None:
        """Remember the keys of a trusted request's ``environ`` if the namespace is the only signed header."""
        if len(headers) == 1 and headers[0][0] == _NAMESPACE and len(self._familiar_keys) < _MAX_FAMILIAR_KEYS:
            self._familiar_keys.update(environ)

    def _mac_of_common_fields(
        self, key_id: str, method: str, path: str, query: str, queue: str, headers: str | _Headers
    ) -> Mac:
        """Return the MAC of the fields that all tasks with one URL, in one queue, have in common."""
        subkey = self._subkeys[key_id]
        fields = [
            method.encode("ascii"),
            self._application,
            path.encode("latin-1"),
            query.encode("latin-1"),
            queue.encode("ascii"),
        ]
        for key, value in ((_NAMESPACE, headers),) if isinstance(headers, str) else sorted(headers):
            # The server strips the blanks around a value.
            fields += (key.encode("latin-1"), value.strip(" \t").encode("latin-1"))
        return Mac(subkey, encode(fields))


class Mac:
    """The state of an HMAC-SHA256 (RFC 2104) after the fields that tasks have in common.

    Two hashes are copied in half the time of an ``hmac.HMAC`` object. ``key`` has 32 bytes, see :func:`derive`.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, key: bytes, common_fields: bytes) -> None:
        block = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(block.translate(_INNER_PAD) + common_fields)
        self._outer = hashlib.sha256(block.translate(_OUTER_PAD))

    def finish(self, claims: str, name: str) -> str:
        """Return the last part of the signature of one task: ``;s=`` and the MAC.

        Raises :class:`UnicodeEncodeError` for a name that is not ASCII, which no task has.
        """
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(_OWN_FIELDS.pack(2, len(claims), len(name)) + (claims + name).encode("ascii"))
        outer.update(inner.digest())
        return f";s={outer.hexdigest()}"


class Signer:
    """Signs tasks that have the path, the queue, our headers and the lifetime in common."""

    __slots__ = ("_claims", "_lifetime_seconds", "_mac", "_times")

    def __init__(self, key_id: str, mac: Mac, lifetime_seconds: float) -> None:
        self._claims = f"{VERSION};k={key_id};i=%010d;e=%010d;n="
        self._mac = mac
        self._lifetime_seconds = lifetime_seconds
        self._times = (-1, "")
        """A second, and the first claims of the tasks that are signed in it and due at once."""

    def sign(self, name: str | None, body: bytes, not_before: float, now: float, nonce: str = "") -> str:
        """Return a task's signature; see :meth:`Keyring.sign`.

        ``nonce`` is 24 random hexadecimal digits; by default they are made here.
        """
        second, first_claims = self._times
        if second != int(now) or not_before > now:
            first_claims = self._claims % (now, max(now, not_before) + self._lifetime_seconds)
            if not_before <= now:
                self._times = (int(now), first_claims)
        nonce = nonce or os.urandom(12).hex()
        claims = f"{first_claims}{nonce};t={0 if name is None else 1};b={digest_of(body)}"
        return claims + self._mac.finish(claims, name or "")


@functools.lru_cache(maxsize=8)
def keyring_for(keys: tuple[KeyMaterial, ...], application: str) -> Keyring:
    """Return the keyring of ``keys`` for the app with the ID ``application``; each keyring is made once."""
    return Keyring(keys, application)


def _our_headers(environ: Mapping[str, str]) -> _Headers:
    """Return the headers that are signed, by their keys in ``environ``."""
    return tuple(
        [(key, value) for key, value in environ.items() if key.startswith(_OUR_PREFIX) and key not in _UNSIGNED]
    )


def _invalid(signature: str, check: str, problem: str) -> UntrustedRequestError:
    """Return the error for an invalid signature; a wrong version or format takes precedence over ``check``."""
    if re.match(r"v[0-9]+;", signature) and not signature.startswith(f"{VERSION};"):
        return UntrustedRequestError("signature-version", f"its signature does not have the version {VERSION}")
    if re.fullmatch(_PATTERN, signature) is None:
        return UntrustedRequestError("signature-format", "its signature is malformed")
    return UntrustedRequestError(check, problem)

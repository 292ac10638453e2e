"""The signature of a task: a request header that binds everything the handler relies on to a secret key.

The header is detached from the payload, so that versions with and without signatures read each other's payloads::

    X-Deferred-Signature: v1;k=<key id>;i=<issued>;e=<expires>;n=<nonce>;t=<named>;b=<SHA-256 of the body>;s=<MAC>

Times are seconds since 1970; ``t`` is 1 where the task was named before it was added, and its name is signed. The MAC
is HMAC-SHA256 over method, application, path, query, queue and all other ``X-Deferred-*`` request headers, and over the
header itself up to ``;s=`` and that name. Each of these fields is told apart by its length, so that no two requests
have the same bytes to sign. Hashes are lower-case hexadecimal, which leaves no second spelling of a signature.

What many tasks have in common comes first, so that a keyring keeps the state of the MAC after it.

From each key subkeys are derived, one for each use, as HKDF does it (RFC 5869). The key's identifier is the hash of a
subkey that nothing else uses, and tells nothing about the key. A version other than ``v1`` is refused: a later one
will have to be understood everywhere before anybody writes it.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import struct
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from deferred_middleware import protocol, randomness
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


_FORMAT: Final = re.compile(
    r"v1;k=[0-9a-f]{16};i=[0-9]+;e=[0-9]+;n=[0-9a-f]{24};t=[01];b=[0-9a-f]{64};s=[0-9a-f]{64}", re.ASCII
)
_OWN: Final = struct.Struct(">3Q")
_BEGUN: Final = 128
"""How many states of a MAC a keyring keeps. A server that bounds the headers it takes bounds their size."""

_OUR_PREFIX: Final = protocol.environ_key(protocol.OUR_HEADER_PREFIX)
_UNSIGNED: Final = frozenset(
    protocol.environ_key(header) for header in (protocol.SIGNATURE_HEADER, protocol.SERVER_TOKEN_HEADER)
)


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
        self._newest = next(iter(self._subkeys), "")
        self._application = application.encode()
        self._begun = functools.lru_cache(maxsize=_BEGUN)(self._begin)

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
        method: str = "POST",
    ) -> str:
        """Return the signature of a task that is posted to ``path``, as the value of its header.

        ``name`` is the task's, if it is known yet; ``not_before`` the time, in seconds since 1970, from which on
        it may run. Of ``headers`` only ours are signed. Another ``method`` is for what is never to be posted.
        """
        signer = self.signer(path=path, queue=queue, headers=headers, lifetime_seconds=lifetime_seconds, method=method)
        return signer.sign(name, body, not_before, now)

    def signer(
        self, *, path: bytes, queue: str, headers: Mapping[str, str], lifetime_seconds: float, method: str = "POST"
    ) -> Signer:
        """Return what signs tasks that have all this in common; see :meth:`sign`."""
        # As the request's environ will have them.
        ours = {protocol.environ_key(header): value.encode().decode("latin-1") for header, value in headers.items()}
        signed = _signed_headers(ours, [key for key in ours if key.startswith(_OUR_PREFIX)])
        return Signer(self._newest, self._begun(self._newest, method, path, "", queue, signed), lifetime_seconds)

    def verify(
        self,
        signature: str,
        *,
        method: str,
        path: bytes,
        query: str,
        queue: str,
        name: str,
        environ: Mapping[str, str],
        now: float,
    ) -> str:
        """Return the hash that the body has to have, for which see :func:`digest_of`.

        ``name`` is the task's, whoever chose it; our other headers are taken from the WSGI ``environ``. Raises
        :class:`UntrustedRequestError`.
        """
        key_id, claims, mac = signature[5:21], signature[:-67], signature[-64:]
        # Whether it is well-formed is looked at only if it does not fit: what fits, we have written.
        if key_id not in self._subkeys or not signature.isascii() or signature[-67:-64] != ";s=":
            raise _explain(signature, "signature-key", "its signature was made with a key that is not known here")
        signed = _signed_headers(environ, [key for key in environ if _OUR_PREFIX in key])
        try:
            named = name if claims[-68] == "1" else ""
            expected = self._mac(key_id, method, path, query, queue, signed, claims, named)
        except (UnicodeEncodeError, IndexError):
            raise _explain(signature, "signature", "what its signature signs is not what it holds") from None
        if not hmac.compare_digest(mac, expected):
            raise _explain(signature, "signature", "its signature does not fit")
        if int(claims.split(";", 4)[3][2:]) < now:
            raise UntrustedRequestError("signature-expired", "its signature has expired")
        return claims[-64:]

    def _mac(
        self,
        key_id: str,
        method: str,
        path: bytes,
        query: str,
        queue: str,
        headers: tuple[str, ...],
        claims: str,
        name: str,
    ) -> str:
        return _ended(self._begun(key_id, method, path, query, queue, headers), claims, name)

    def _begin(
        self, key_id: str, method: str, path: bytes, query: str, queue: str, headers: tuple[str, ...]
    ) -> hmac.HMAC:
        """Return the MAC's state after what tasks with one URL, in one queue, have in common."""
        fields = [
            method.encode("ascii"),
            self._application,
            path,
            query.encode("latin-1"),
            queue.encode("ascii"),
            *(text.encode("latin-1") for text in headers),
        ]
        return hmac.new(self._subkeys[key_id], encode(fields), "sha256")


class Signer:
    """Signs tasks that are alike: the same path, queue and headers of ours, and the same lifetime."""

    __slots__ = ("_begun", "_claims", "_due_now", "_lifetime_seconds")

    def __init__(self, key_id: str, begun: hmac.HMAC, lifetime_seconds: float) -> None:
        self._claims = f"{VERSION};k={key_id};i="
        self._begun = begun
        self._lifetime_seconds = lifetime_seconds
        self._due_now = (-1, "")
        """What the signatures of tasks that are due at once begin with, all that are made in one second."""

    def sign(self, name: str | None, body: bytes, not_before: float, now: float, nonce: str = "") -> str:
        """Return a task's signature; see :meth:`Keyring.sign`. ``nonce`` is 24 random digits, where there are some."""
        second, beginning = self._due_now
        if second != int(now) or not_before > now:
            beginning = f"{self._claims}{int(now)};e={int(max(now, not_before) + self._lifetime_seconds)};n="
            if not_before <= now:
                self._due_now = (int(now), beginning)
        nonce = nonce or randomness.hex32()[:24]
        claims = f"{beginning}{nonce};t={0 if name is None else 1};b={digest_of(body)}"
        return f"{claims};s={_ended(self._begun, claims, name or '')}"


def _ended(begun: hmac.HMAC, claims: str, name: str) -> str:
    """Return the MAC of one task, from its state after what the task has in common with others."""
    mac = begun.copy()
    own = (claims + name).encode("ascii")
    mac.update(_OWN.pack(2, len(claims), len(name)) + own)  # what encode() makes of the two
    return mac.hexdigest()


@functools.lru_cache(maxsize=8)
def keyring_for(keys: tuple[SecretKey, ...], application: str) -> Keyring:
    """Return the keyring of ``keys``; each is made once."""
    return Keyring(keys, application)


def signer_for(options: Options, *, queue: str, url: str, headers: Mapping[str, str]) -> Signer | None:
    """Return what signs tasks with these options, or None if the process has no key.

    ``url`` is the path that they are posted to, ``headers`` all the others. Raises :class:`SecretKeyMissingError` where
    a task without a signature would not run.
    """
    settings, deployment = current_settings(), current_deployment()
    keyring = keyring_for(settings.secret_keys, deployment.application)
    if not keyring:
        if settings.require_signature:
            raise SecretKeyMissingError(on_app_engine_standard=deployment.on_app_engine_standard)
        return None
    lifetime = LOCAL_LIFETIME_SECONDS if deployment.on_local_server else LIFETIME_SECONDS
    age_limit = options.retry_options.task_age_limit if options.retry_options else None
    return keyring.signer(
        path=path_of(url), queue=queue, headers=headers, lifetime_seconds=max(lifetime, age_limit or 0)
    )


def _signed_headers(environ: Mapping[str, str], keys: list[str]) -> tuple[str, ...]:
    """Return the names and values of the headers that are signed, in the order in which they are, of these ``keys``."""
    if len(keys) > 1:
        keys.sort()
    found: list[str] = []
    for key in keys:
        if key not in _UNSIGNED and key.startswith(_OUR_PREFIX):
            # The server strips a value's surrounding blanks.
            found += (key, environ[key].strip(" \t"))
    return tuple(found)


def _explain(signature: str, check: str, problem: str) -> UntrustedRequestError:
    """Return the error for a signature that does not hold, which may be so because it is none."""
    if re.match(r"v[0-9]+;", signature) and not signature.startswith(f"{VERSION};"):
        return UntrustedRequestError("signature-version", f"its signature is not of the version {VERSION}")
    if _FORMAT.fullmatch(signature) is None:
        return UntrustedRequestError("signature-format", "its signature is malformed")
    return UntrustedRequestError(check, problem)

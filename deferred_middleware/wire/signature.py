"""The signature of a task: a request header that binds everything the handler relies on to a secret key.

The header is detached from the payload, so that versions with and without signatures read each other's payloads::

    X-Deferred-Signature: v1;k=<key id>;i=<issued>;e=<expires>;n=<nonce>;t=<named>;b=<SHA-256 of the body>;s=<MAC>

Times are seconds since 1970, in ten digits; ``t`` is 1 where the task was named before it was added, and its name is
signed. The MAC is HMAC-SHA256 over method, application, path, query, queue and all other ``X-Deferred-*`` request
headers, and over the header itself up to ``;s=`` and that name. Each of these fields is told apart by its length, so
that no two requests have the same bytes to sign. Hashes are lower-case hexadecimal, which leaves no second spelling of
a signature.

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
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.config.settings import current_deployment, current_settings
from deferred_middleware.errors import SecretKeyMissingError, UntrustedRequestError
from deferred_middleware.wire import protocol, randomness

if TYPE_CHECKING:
    from deferred_middleware.calls.options import Options
    from deferred_middleware.config.keys import SecretKey

VERSION: Final = "v1"
LIFETIME_SECONDS: Final = (protocol.MAX_TASK_AGE_DAYS + 1) * 24 * 3600
"""How long a signature holds from its task's ETA: as long as the platform keeps a task, and a day for clocks."""
LOCAL_LIFETIME_SECONDS: Final = 3650 * 24 * 3600
"""The same on the local server, which keeps a task for as long as it waits, and whose key never leaves the machine."""
LONGEST_LIFETIME_SECONDS: Final = 100 * 365 * 24 * 3600
"""The longest, whatever age a task may reach: times have ten digits."""

_SALT: Final = b"deferred_middleware"
_SIGNING: Final = b"deferred_middleware v1: sign tasks"
_IDENTIFYING: Final = b"deferred_middleware v1: identify the key"


_FORMAT: Final = re.compile(
    r"v1;k=[0-9a-f]{16};i=[0-9]{10};e=[0-9]{10};n=[0-9a-f]{24};t=[01];b=[0-9a-f]{64};s=[0-9a-f]{64}", re.ASCII
)
_OWN: Final = struct.Struct(">3Q")
LENGTH: Final = 212  # so that each part of a signature is where it always is
_USUAL: Final = 500
"""How many headers' names a keyring remembers, and one request's more."""
_BEGUN: Final = 128
"""How many states of a MAC a keyring keeps. A server that bounds the headers it takes bounds their size."""

_OUR_PREFIX: Final = protocol.environ_key(protocol.OUR_HEADER_PREFIX)
_SIGNATURE: Final = protocol.environ_key(protocol.SIGNATURE_HEADER)
_NAMESPACE: Final = protocol.environ_key(protocol.NAMESPACE_HEADER)
_UNSIGNED: Final = frozenset({_SIGNATURE, protocol.environ_key(protocol.SERVER_TOKEN_HEADER)})

_Headers = tuple[tuple[str, str], ...]


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
        self._usual: set[str] = set()
        """Keys of an environ of which none but the namespace's is signed."""
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
        begun = self._begun(self._newest, method, path.decode("latin-1"), "", queue, _our_headers(ours))
        return Signer(self._newest, begun, min(lifetime_seconds, LONGEST_LIFETIME_SECONDS))

    def verify(self, signature: str, environ: Mapping[str, Any], queue: str, name: str, now: float) -> str:
        """Return the hash that the body has to have, for which see :func:`digest_of`.

        ``environ`` is the WSGI one of the task's request, ``name`` the task's, whoever chose it. Raises
        :class:`UntrustedRequestError`.
        """
        # The rest of its form is looked at only if it does not fit: what fits, we have written.
        if len(signature) != LENGTH or not signature.isascii():
            raise _explain(signature, "signature-format", "its signature is malformed")
        claims = signature[:-67]
        # Asking a set of names that were seen takes a third of the time that looking at each does.
        is_usual = _NAMESPACE in environ and self._usual.issuperset(environ)
        headers = environ[_NAMESPACE] if is_usual else _our_headers(environ)
        try:
            begun = self._begun(
                signature[5:21],
                environ["REQUEST_METHOD"],
                environ.get("SCRIPT_NAME", "") + environ["PATH_INFO"],
                environ.get("QUERY_STRING", ""),
                queue,
                headers,
            )
            expected = begun.of(claims, name if claims[-68] == "1" else "")
        except KeyError:
            raise _explain(
                signature, "signature-key", "its signature was made with a key that is not known here"
            ) from None
        except UnicodeEncodeError:
            raise _explain(signature, "signature", "what its signature signs is not what it holds") from None
        if not hmac.compare_digest(signature[-67:], expected):
            raise _explain(signature, "signature", "its signature does not fit")
        if not is_usual:
            self._remember(environ, headers)
        if float(claims[37:47]) < now:
            raise UntrustedRequestError("signature-expired", "its signature has expired")
        return claims[-64:]

    def _remember(self, environ: Mapping[str, Any], headers: _Headers) -> None:
        """Remember the names of a trusted request's headers if only the namespace's is signed."""
        if len(headers) == 1 and headers[0][0] == _NAMESPACE and len(self._usual) < _USUAL:
            self._usual.update(environ)

    def _begin(self, key_id: str, method: str, path: str, query: str, queue: str, headers: str | _Headers) -> Mac:
        """Return the MAC's state after what tasks with one URL, in one queue, have in common."""
        subkey = self._subkeys[key_id]
        fields = [
            method.encode("ascii"),
            self._application,
            path.encode("latin-1"),
            query.encode("latin-1"),
            queue.encode("ascii"),
        ]
        for key, value in ((_NAMESPACE, headers),) if isinstance(headers, str) else sorted(headers):
            # The server strips a value's surrounding blanks.
            fields += (key.encode("latin-1"), value.strip(" \t").encode("latin-1"))
        return Mac(subkey, encode(fields))


class Mac:
    """The HMAC-SHA256 of what tasks have in common, to be followed by what each has of its own."""

    __slots__ = ("_begun",)

    def __init__(self, key: bytes, beginning: bytes) -> None:
        begun = hmac.new(key, beginning, "sha256")
        # What is copied for each task is OpenSSL's own, where there is one: it is copied in half the time.
        self._begun: Any = getattr(begun, "_hmac", None) or begun

    def of(self, claims: str, name: str) -> str:
        """Return the end of a signature, which is the MAC of one task.

        Raises :class:`UnicodeEncodeError` for a name that no task has.
        """
        mac = self._begun.copy()
        mac.update(_OWN.pack(2, len(claims), len(name)) + (claims + name).encode("ascii"))  # as encode() has the two
        return f";s={mac.hexdigest()}"


class Signer:
    """Signs tasks that are alike: the same path, queue and headers of ours, and the same lifetime."""

    __slots__ = ("_begun", "_claims", "_due_now", "_lifetime_seconds")

    def __init__(self, key_id: str, begun: Mac, lifetime_seconds: float) -> None:
        self._claims = f"{VERSION};k={key_id};i=%010d;e=%010d;n="
        self._begun = begun
        self._lifetime_seconds = lifetime_seconds
        self._due_now = (-1, "")
        """What the signatures of tasks that are due at once begin with, all that are made in one second."""

    def sign(self, name: str | None, body: bytes, not_before: float, now: float, nonce: str = "") -> str:
        """Return a task's signature; see :meth:`Keyring.sign`. ``nonce`` is 24 random digits, where there are some."""
        second, beginning = self._due_now
        if second != int(now) or not_before > now:
            beginning = self._claims % (now, max(now, not_before) + self._lifetime_seconds)
            if not_before <= now:
                self._due_now = (int(now), beginning)
        nonce = nonce or randomness.hex32()[:24]
        claims = f"{beginning}{nonce};t={0 if name is None else 1};b={digest_of(body)}"
        return claims + self._begun.of(claims, name or "")


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


def _our_headers(environ: Mapping[str, str]) -> _Headers:
    """Return the headers that are signed, by their keys in ``environ``."""
    return tuple(
        [(key, value) for key, value in environ.items() if key.startswith(_OUR_PREFIX) and key not in _UNSIGNED]
    )


def _explain(signature: str, check: str, problem: str) -> UntrustedRequestError:
    """Return the error for a signature that does not hold, which may be so because it is none."""
    if re.match(r"v[0-9]+;", signature) and not signature.startswith(f"{VERSION};"):
        return UntrustedRequestError("signature-version", f"its signature is not of the version {VERSION}")
    if _FORMAT.fullmatch(signature) is None:
        return UntrustedRequestError("signature-format", "its signature is malformed")
    return UntrustedRequestError(check, problem)

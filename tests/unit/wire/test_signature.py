"""Tests of a task's signature."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from google.appengine.api.taskqueue import TaskRetryOptions
from hypothesis import example, given
from hypothesis import strategies as st

from deferred_middleware import Settings
from deferred_middleware.calls.headers import signer_for
from deferred_middleware.calls.options import Options
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.process import Deployment
from deferred_middleware.errors import UntrustedRequestError
from deferred_middleware.wire.protocol import environ_key
from deferred_middleware.wire.signature import (
    LIFETIME_SECONDS,
    Keyring,
    derive,
    digest_of,
    encode,
    keyring_for,
    path_of,
)

OLD, NEW = SecretKey("o" * 32), SecretKey("n" * 32)
NOW = 1_800_000_000.0
DAY = 24 * 3600
BODY = b"a payload"
TASK: dict[str, Any] = {"path": b"/_cb/deferred/m/f", "queue": "default", "headers": {}}


def sign(keyring: Keyring, **changes: Any) -> str:
    """Return the signature of a task."""
    facts = {"name": None, "body": BODY, "not_before": 0.0, "lifetime_seconds": 100.0, "now": NOW} | TASK | changes
    return keyring.sign(**facts)


def verify(keyring: Keyring, signature: str, **changes: Any) -> str:
    """Return the body hash that a signature covers, for the task's request."""
    facts = TASK | {"method": "POST", "query": "", "name": "123", "now": NOW, "environ": {}} | changes
    request = {"REQUEST_METHOD": facts["method"], "PATH_INFO": facts["path"].decode(), "QUERY_STRING": facts["query"]}
    environ = {"HTTP_X_DEFERRED_SIGNATURE": signature, **request, **facts["environ"]}
    return keyring.verify(signature, environ, facts["queue"], facts["name"], facts["now"])


def refused(keyring: Keyring, signature: str, **changes: Any) -> str:
    """Return the check that refuses a signature."""
    with pytest.raises(UntrustedRequestError) as caught:
        verify(keyring, signature, **changes)
    return caught.value.check


RING = Keyring([NEW, OLD], "app")


def test_what_was_signed_verifies() -> None:
    """A valid signature yields the body's hash."""
    assert verify(RING, sign(RING)) == digest_of(BODY) == hashlib.sha256(BODY).hexdigest()


def test_the_newest_key_signs_and_all_verify() -> None:
    """The first key signs; a signature of any known key is valid, and of an unknown key invalid."""
    assert f";k={Keyring([NEW], 'app').key_ids[0]};" in sign(RING)
    assert verify(RING, sign(Keyring([OLD], "app")))
    assert refused(Keyring([OLD], "app"), sign(RING)) == "signature-key"


@pytest.mark.parametrize(
    "change",
    [
        {"path": b"/_cb/deferred/m/g"},
        {"path": b"/_cb/deferred/m/f/"},
        {"query": "a=b"},
        {"queue": "other"},
        {"method": "PUT"},
        {"environ": {"HTTP_X_DEFERRED_ANYTHING": "added"}},
        {"environ": {"HTTP_X_DEFERRED_ANYTHING": ""}},
    ],
)
def test_a_task_cannot_be_moved(change: dict[str, Any]) -> None:
    """A signature is refused with another path, query, queue or method, or with an added X-Deferred header."""
    assert refused(RING, sign(RING), **change) == "signature"


def test_another_application_is_refused() -> None:
    """A task of another application with the same key is refused."""
    assert refused(Keyring([NEW], "other"), sign(RING)) == "signature"


def test_a_chosen_name_is_signed() -> None:
    """A chosen name must match the task's name; a generated name is unknown when the task is signed, so any matches."""
    signature = sign(RING, name="chosen")

    assert verify(RING, signature, name="chosen")
    assert refused(RING, signature, name="123") == "signature"
    assert refused(RING, signature.replace(";t=1;", ";t=0;"), name="chosen") == "signature"
    assert verify(RING, sign(RING), name="any")


def test_our_headers_are_signed() -> None:
    """Each X-Deferred header must be unchanged; other headers, and the ones that the server adds, can vary."""
    signature = sign(RING, headers={"X-Deferred-Retry-Limit": "3", "x-deferred-b": " é ", "Content-Type": "x/y"})
    sent = {"HTTP_X_DEFERRED_RETRY_LIMIT": "3", "HTTP_X_DEFERRED_B": "é".encode().decode("latin-1")}

    assert verify(RING, signature, environ=sent)
    assert verify(RING, signature, environ={**sent, "HTTP_X_OTHER": "1", "HTTP_X_DEFERRED_SIGNATURE": signature})
    for environ in ({}, {**sent, "HTTP_X_DEFERRED_RETRY_LIMIT": "4"}, {"HTTP_X_DEFERRED_RETRY_LIMIT": "3"}):
        assert refused(RING, signature, environ=environ) == "signature"


def test_a_signature_expires() -> None:
    """A signature is valid for its lifetime after the ETA, or after now if there is no ETA, and no longer."""
    assert verify(RING, sign(RING), now=NOW + 100)
    assert refused(RING, sign(RING), now=NOW + 101) == "signature-expired"
    assert verify(RING, sign(RING, not_before=NOW + 1000), now=NOW + 1100)
    assert refused(RING, sign(RING, not_before=NOW + 1000), now=NOW + 1101) == "signature-expired"


@given(
    now=st.floats(1.7e9, 4e9),
    ahead=st.none() | st.floats(-1e6, 30 * DAY),
    limit=st.none() | st.integers(1, 400 * DAY),
    local=st.booleans(),
    share=st.floats(0, 1),
)
def test_no_task_outlives_its_signature(
    now: float, ahead: float | None, limit: int | None, local: bool, share: float
) -> None:
    """For any ETA and age limit, a signature is valid as long as the queue may run the task, even on a fast clock."""
    deployment = Deployment(environment="localdev" if local else "standard", application="app")
    settings = Settings(secret_keys=(NEW,))
    eta = None if ahead is None else now + ahead
    retry_options = TaskRetryOptions(task_age_limit=limit) if limit else None
    options = Options(eta_posix=eta, retry_options=retry_options)
    signer = signer_for(options, settings, deployment, queue="default", url="/_cb", headers={})
    assert signer is not None
    signature = signer.sign(None, BODY, eta or 0.0, now)

    # 31 days, and one for clock skew. The local server keeps a waiting task without limit, so there it is years.
    longest = 3000 * DAY if local else max(32 * DAY - 1, (limit or 1) - 1)
    at = max(now, eta or 0.0) + share * longest
    assert verify(keyring_for((NEW,), "app"), signature, path=b"/_cb", now=at)


def test_the_lifetime_is_that_of_a_task_and_a_day() -> None:
    """A task waits for up to 31 days. A day more is for clocks that differ."""
    assert LIFETIME_SECONDS == 32 * DAY


def test_one_signer_signs_for_every_eta() -> None:
    """A task that is due now, a later one, and one that is due now, signed in one second, expire on their own."""
    signer = RING.signer(path=b"/_cb/deferred/m/f", queue="default", headers={}, lifetime_seconds=100)
    for later in (NOW + 1000.5, NOW + 1, NOW + 0.25):
        for not_before in (0.0, later, NOW, later, 0.0):
            signature = signer.sign(None, BODY, not_before, NOW + 0.2)
            last = int(max(not_before, NOW + 0.2) + 100)
            assert f";e={last:010d};" in signature
            assert verify(RING, signature, now=last)
            assert refused(RING, signature, now=last + 1) == "signature-expired"


@given(st.lists(st.tuples(st.floats(0, 3), st.none() | st.floats(-5, 5)), min_size=2, max_size=8))
def test_a_signer_keeps_nothing_of_other_tasks(tasks: list[tuple[float, float | None]]) -> None:
    """Whatever a signer has signed before, a signature has the times of its own task."""
    signer = RING.signer(path=b"/_cb/deferred/m/f", queue="default", headers={}, lifetime_seconds=100)
    for after, ahead in tasks:
        now = NOW + after
        not_before = 0.0 if ahead is None else now + ahead
        claims = dict(part.split("=", 1) for part in signer.sign(None, BODY, not_before, now).split(";")[1:])
        assert int(claims["i"]) == int(now)
        assert int(claims["e"]) == int(max(now, not_before) + 100)


few = st.text("a/1;", max_size=3)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a task. Any two are likely to have the same concatenated fields, with different field borders."""
    names = draw(st.lists(st.sampled_from(["X-Deferred-A", "X-Deferred-A1", "X-Other"]), unique=True, max_size=3))
    return {
        "path": draw(few).encode(),
        "queue": draw(few),
        "name": draw(st.none() | few),
        "headers": {name: draw(few) for name in names},
    }


@given(requests(), requests() | st.none())
@example(
    {"path": b"a", "queue": "", "name": "", "headers": {"X-Deferred-A": "1"}},
    {"path": b"a", "queue": "", "name": "1", "headers": {"X-Deferred-A": ""}},
)
def test_a_signature_fits_one_request_only(one: dict[str, Any], other: dict[str, Any] | None) -> None:
    """If two tasks differ in any signed part, neither task's signature is valid for the other."""
    other = other or one
    signature = sign(RING, **one)
    environ = {environ_key(name): value for name, value in other["headers"].items()}
    arriving = {"path": other["path"], "queue": other["queue"], "environ": environ, "name": other["name"] or ""}
    signed = [
        {**task, "headers": {k: v for k, v in task["headers"].items() if k != "X-Other"}} for task in (one, other)
    ]
    # A name that the queue generates is unknown when the task is signed.
    alike = {**signed[1], "name": one["name"]} if one["name"] is None else {**signed[1], "name": other["name"] or ""}

    if signed[0] == alike:
        assert verify(RING, signature, **arriving)
    else:
        assert refused(RING, signature, **arriving) == "signature"


def test_a_clock_that_is_slow_refuses_nothing() -> None:
    """A signature from the future is valid, because the clock may be slow."""
    assert verify(RING, sign(RING), now=NOW - 3600)


def test_the_mac_is_the_documented_one() -> None:
    """The MAC equals one computed from the module's documentation, because versions must agree on it."""

    def block(*fields: bytes) -> bytes:
        return b"".join(number.to_bytes(8, "big") for number in (len(fields), *map(len, fields))) + b"".join(fields)

    headers = {"X-Deferred-Namespace": " ä ", "X-Deferred-Deadline": "30", "X-Other": "no"}
    signature = sign(RING, name="mine", headers=headers)
    claims, mac = signature.split(";s=")
    ours = (b"HTTP_X_DEFERRED_DEADLINE", b"30", b"HTTP_X_DEFERRED_NAMESPACE", "ä".encode())
    message = block(b"POST", b"app", b"/_cb/deferred/m/f", b"", b"default", *ours) + block(claims.encode(), b"mine")
    subkey = derive(NEW, b"deferred_middleware v1: sign tasks")

    assert mac == hmac.new(subkey, message, hashlib.sha256).hexdigest()


several = st.lists(st.binary(max_size=10), max_size=4)


@given(several, st.binary(max_size=40), several, st.binary(max_size=40))
def test_what_follows_an_encoding_is_told_apart(one: list[bytes], two: bytes, three: list[bytes], four: bytes) -> None:
    """The bytes after an encoded prefix can't be mistaken for a part of the prefix."""
    assert (encode(one) + two == encode(three) + four) == ((one, two) == (three, four))


@pytest.mark.parametrize("moved", range(1, 7))
def test_the_border_of_the_name_is_fixed(moved: int) -> None:
    """Bytes can't move between the signed name and the signature's own fields."""
    signature = sign(RING, name="chosen")
    claims, mac = signature.split(";s=")

    assert refused(RING, f"{claims}{'chosen'[:moved]};s={mac}", name="chosen"[moved:]) == "signature-format"
    assert refused(RING, f"{claims[:-moved]};s={mac}", name=claims[-moved:] + "chosen") == "signature-format"


@pytest.mark.parametrize("moment", [0.0, 1_000_000_000.0, NOW, 6_000_000_000.0])
def test_times_have_ten_digits(moment: float) -> None:
    """A signature has the same length for any time and lifetime, and verifies."""
    signature = sign(RING, now=moment, lifetime_seconds=10**15)

    assert len(signature) == len(sign(RING))
    assert verify(RING, signature, now=moment)


def test_what_is_usual_is_no_less_signed() -> None:
    """After a trusted request's headers are cached, a changed, added or missing X-Deferred header is refused."""
    keyring = Keyring([NEW], "app")
    signature = sign(keyring, headers={"X-Deferred-Namespace": "tenant"})
    usual = {"HTTP_X_DEFERRED_NAMESPACE": "tenant", "HTTP_X_OTHER": "1", "HTTP_HOST": "here"}

    for _ in range(3):
        assert verify(keyring, signature, environ=usual)
        assert verify(keyring, signature, environ={"HTTP_X_DEFERRED_NAMESPACE": "tenant", "HTTP_X_NEW": "1"})
        for change in (
            {**usual, "HTTP_X_DEFERRED_ANYTHING": "added"},
            {**usual, "HTTP_X_DEFERRED_NAMESPACE": "other"},
            {"HTTP_X_OTHER": "1", "HTTP_HOST": "here"},
        ):
            assert refused(keyring, signature, environ=change) == "signature"


def test_a_header_of_another_task_is_not_usual() -> None:
    """A header that one task's signature covers is refused with a task that was signed without it."""
    keyring = Keyring([NEW], "app")
    namespace = {"X-Deferred-Namespace": "tenant"}
    environ = {"HTTP_X_DEFERRED_NAMESPACE": "tenant", "HTTP_X_DEFERRED_RETRY_LIMIT": "3"}

    for _ in range(2):
        assert verify(keyring, sign(keyring, headers={**namespace, "X-Deferred-Retry-Limit": "3"}), environ=environ)
        assert refused(keyring, sign(keyring, headers=namespace), environ=environ) == "signature"


def test_what_is_refused_is_not_remembered() -> None:
    """A refused request adds nothing to the keyring's cache of header names, and accepted ones only up to a limit."""
    keyring = Keyring([NEW], "app")
    signature = sign(keyring, headers={"X-Deferred-Namespace": "tenant"})
    many = {f"HTTP_X_{number}": "" for number in range(400)}

    refused(keyring, signature, environ={"HTTP_X_DEFERRED_NAMESPACE": "other", **many})
    assert not keyring._familiar_keys
    for batch in range(5):
        others = {f"{key}_{batch}": "" for key in many}
        assert verify(keyring, signature, environ={"HTTP_X_DEFERRED_NAMESPACE": "tenant", **others})
    assert 800 < len(keyring._familiar_keys) < 1000


@pytest.mark.parametrize(
    ("signature", "check"),
    [
        ("", "signature-format"),
        ("v1", "signature-format"),
        ("nonsense", "signature-format"),
        ("v1;;;;;;;;s=", "signature-format"),
        ("v;k=;i=;e=;n=;t=;b=;s=", "signature-format"),
        ("v1;k=;i=;e=;n=;t=;b=;s=", "signature-format"),
        (f"v1;k={16 * 'f'};i={10 * '1'};e={10 * '2'};n={24 * 'f'};t=0;b={64 * 'f'};s={64 * 'f'}", "signature-key"),
        (f"v1;k={16 * 'f'};i=1;e=2;n={24 * 'f'};t=0;b={64 * 'f'};s={64 * 'f'}", "signature-format"),
        ("v2;whatever", "signature-version"),
        ("v10;k=;i=;e=;n=;t=;b=;s=", "signature-version"),
        ("v1;k=é;i=;e=;n=;t=;b=;s=", "signature-format"),
    ],
)
def test_what_is_no_signature_is_refused(signature: str, check: str) -> None:
    """A malformed signature, or one of an unknown version, is refused by the corresponding check."""
    assert refused(RING, signature) == check


def test_a_signature_has_one_spelling() -> None:
    """A signature with capitals, blanks or an appended character is refused."""
    signature = sign(RING)

    for other in (signature.upper(), signature + " ", f" {signature}", signature + "0", f"{signature},{signature}"):
        assert refused(RING, other)


@given(st.data())
def test_one_changed_character_is_refused(data: st.DataObject) -> None:
    """A signature with any one character changed is refused."""
    signature = sign(RING)
    at = data.draw(st.integers(0, len(signature) - 1))
    other = data.draw(st.characters(max_codepoint=255).filter(lambda c: c != signature[at]))

    assert refused(RING, signature[:at] + other + signature[at + 1 :])


def test_each_signature_is_another() -> None:
    """Two signatures of the same task differ."""
    assert sign(RING) != sign(RING)


fields = st.lists(st.binary(max_size=12), max_size=6)


@given(fields, fields)
def test_no_two_lists_share_an_encoding(one: list[bytes], other: list[bytes]) -> None:
    """Two lists of fields have the same encoding only if they are equal."""
    assert (encode(one) == encode(other)) == (one == other)


@given(fields.filter(bool), st.data())
def test_moving_a_border_changes_the_encoding(one: list[bytes], data: st.DataObject) -> None:
    """The same bytes with different field borders have different encodings, even if fields look like lengths."""
    joined = encode(one) + b"".join(one)
    cut = data.draw(st.integers(0, len(joined)))

    assert encode([joined[:cut], joined[cut:]]) != encode([joined])
    assert encode([encode(one)]) != encode(one)
    assert encode([*one, b""]) != encode(one)


def test_subkeys_are_derived_as_in_rfc_5869() -> None:
    """The derivation matches the RFC's first test vector for its key and salt."""
    key = b"\x0b" * 22
    prk = hmac.digest(bytes(range(13)), key, "sha256")
    assert prk.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"
    first_block = hmac.digest(prk, bytes(range(0xF0, 0xFA)) + b"\x01", "sha256")
    assert first_block.hex().startswith("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")

    extracted = hmac.digest(b"deferred_middleware", b"k" * 32, "sha256")
    assert derive(SecretKey("k" * 32), b"use") == hmac.digest(extracted, b"use\x01", "sha256")


def test_each_use_has_its_own_subkey() -> None:
    """A key ID is neither the key nor the signing subkey, and differs between keys."""
    assert derive(NEW, b"a") != derive(NEW, b"b")
    assert derive(NEW, b"a") != derive(OLD, b"a")
    assert len(set(RING.key_ids)) == 2
    assert derive(NEW, b"deferred_middleware v1: sign tasks").hex()[:16] not in RING.key_ids


def test_a_keyring_is_made_once() -> None:
    """A process's keys are derived once, and an empty list of keys makes an empty keyring."""
    assert keyring_for((NEW,), "app") is keyring_for((NEW,), "app")
    assert not keyring_for((), "app")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/_cb/deferred/m/f", b"/_cb/deferred/m/f"),
        ("/_cb/deferred/m/%3Clambda%3E", b"/_cb/deferred/m/<lambda>"),
        ("/_cb/deferred/m/gr%C3%B6%C3%9Fe", "/_cb/deferred/m/größe".encode()),
        ("/a%2Fb", b"/a/b"),
    ],
)
def test_the_decoded_path_is_signed(url: str, path: bytes) -> None:
    """The signature covers the decoded path, as WSGI servers pass it on."""
    assert path_of(url) == path
    assert environ_key("X-Deferred-Signature") == "HTTP_X_DEFERRED_SIGNATURE"

"""Measure the time to sign a task and to check its request, with a small body and with one of 100 KB.

Run ``python benchmarks/signing.py``. The bar: less than 0.3 ms at 100 KB, the maximum size of a task. Most of the time
is the SHA-256 of the body, which is also measured alone.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from interleave import measure
from recording import Arguments, Recording

from deferred_middleware import Settings
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.process import Deployment
from deferred_middleware.execution import trust
from deferred_middleware.wire import protocol
from deferred_middleware.wire.signature import digest_of, keyring_for

BAR_MICROSECONDS = 300.0
SIZES = {"100 bytes": 100, "100 KB": 100_000}
KEY = SecretKey("not a secret, for a benchmark only")
LIFETIME_SECONDS = 32 * 24 * 3600.0


def contenders_for(body: bytes) -> tuple[Callable[[], object], Callable[[], object], Callable[[], object]]:
    """Return functions that sign a task with ``body``, check its request, and only hash the body."""
    path, headers = "/_cb/deferred/shop.mail/send", {protocol.NAMESPACE_HEADER: "tenant"}
    keyring = keyring_for((KEY,), "app")
    authenticator = trust.Authenticator(Settings(secret_keys=(KEY,)), Deployment(application="app"))

    def sign() -> str:
        return keyring.sign(
            path=path.encode(),
            queue="default",
            name=None,
            headers=headers,
            body=body,
            not_before=0.0,
            lifetime_seconds=LIFETIME_SECONDS,
            now=2e9,
        )

    environ = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "CONTENT_LENGTH": str(len(body)),
        protocol.environ_key(protocol.TASK_NAME_HEADER): "8570000000001",
        protocol.environ_key(protocol.QUEUE_NAME_HEADER): "default",
        protocol.environ_key(protocol.NAMESPACE_HEADER): "tenant",
        protocol.environ_key(protocol.SIGNATURE_HEADER): sign(),
    }

    def check() -> None:
        if authenticator.body_of({**environ, "wsgi.input": io.BytesIO(body)}) != body:
            raise RuntimeError("it was not taken for a signed one")

    return sign, check, lambda: digest_of(body)


def main() -> int:
    """Print the table, and return 1 if the bar is missed."""
    options = Arguments(__doc__, rounds=(60, 6), calls=(200, 50)).parse()
    recording = Recording()
    contenders: dict[str, Callable[[], object]] = {}
    for label, size in SIZES.items():
        sign, check, hash_alone = contenders_for(os.urandom(size))
        contenders |= {f"sign {label}": sign, f"check {label}": check, f"SHA-256 of {label}": hash_alone}
    medians = recording.table(
        "Sign a task and check its request",
        "µs",
        measure(contenders, rounds=options.rounds, calls=options.calls),
        ours=[name for name in contenders if not name.startswith("SHA-256")],
        reference="SHA-256 of 100 KB",
    )
    worst = max(medians["sign 100 KB"], medians["check 100 KB"])
    recording.goal("the slower of signing and checking 100 KB", worst, at_most=BAR_MICROSECONDS, unit="µs")
    return recording.end(options.json)


if __name__ == "__main__":
    sys.exit(main())

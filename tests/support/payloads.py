"""Payloads that one version of Python writes and other versions read.

``python -m tests.support.payloads write FILE`` writes a call of every kind. ``read FILE…`` runs the calls in the files,
and fails if a result differs from the one that the writer recorded.
"""

from __future__ import annotations

import base64
import datetime
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deferred_middleware import call
from deferred_middleware.calls.payload import dumps, loads
from tests.support import zoo

PROTOCOLS = (2, 5)
"""The protocol that the older library writes for compatibility with Python 2, and the default protocol."""

ARGUMENTS: tuple[Any, ...] = (
    None,
    True,
    2**70,
    0.1,
    "text, ä, \U0001f40d",
    b"\x00\xff",
    [1, [2]],
    (1, (2,)),
    {"a": {"b": 1}},
    {1, 2},
    frozenset({3}),
    datetime.datetime(2026, 2, 3, 4, 5, 6, 7, datetime.timezone.utc),
    datetime.timedelta(seconds=1.5),
    zoo.Frozen("state"),
    zoo.Named("state"),
    zoo.Colour.RED,
)


def written() -> dict[str, str]:
    """Return the payload of a call of every kind in each protocol that can pickle it, by kind and protocol."""
    made = {}
    for kind, factory in zoo.KINDS.items():
        func, _, _ = factory("state")
        for protocol in PROTOCOLS:
            data = dumps(call(func, *ARGUMENTS, named=ARGUMENTS), protocol)
            made[f"{kind}, protocol {protocol}"] = base64.b64encode(data).decode()
    return made


def differences(payloads: dict[str, str]) -> Iterator[str]:
    """Run each of ``payloads``, and yield a description of each unexpected result."""
    for name, text in payloads.items():
        kind = name.rpartition(", ")[0]
        expected = (*zoo.KINDS[kind]("state")[1:], ARGUMENTS, {"named": ARGUMENTS})
        result = loads(base64.b64decode(text)).run()
        if result != expected:
            yield f"{name}: {result!r}"


def main(arguments: list[str]) -> int:
    """Write or read payloads; return 1 if a result was wrong."""
    verb, *files = arguments
    if verb == "write":
        Path(files[0]).write_text(json.dumps(written(), indent=0) + "\n")
        return 0
    version = sys.version.split()[0]
    wrong = 0
    for file in map(Path, files):
        payloads = json.loads(file.read_text())
        problems = list(differences(payloads))
        wrong += len(problems)
        told = "\n".join(problems) if problems else f"all {len(payloads)} as they should"
        sys.stdout.write(f"Python {version} runs the payloads of {file.name}: {told}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Payloads that one version of Python writes and other versions read.

``python -m tests.support.payloads write FILE`` writes a call of every kind. ``read FILE…`` runs the calls in the files,
and fails if a result differs from the one that the writer recorded.
"""

from __future__ import annotations

import argparse
import array
import base64
import collections
import datetime
import decimal
import email.headerregistry
import fractions
import functools
import http.cookies
import inspect
import ipaddress
import json
import operator
import pathlib
import re
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time
import types
import typing
import urllib.error
import urllib.parse
import uuid
import zoneinfo
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

STANDARD: dict[str, Any] = {
    # What each Python writes, each other one reads. The documentation of defer lists the exceptions to this.
    type(value).__module__ + "." + type(value).__qualname__ + f" {number}": value
    for number, value in enumerate[Any](
        (
            ...,
            NotImplemented,
            1 + 2j,
            bytearray(b"a"),
            range(3),
            slice(1, 2),
            len,
            int,
            array.array("d", [1.0]),
            argparse.Namespace(a=1),
            collections.ChainMap({"a": 1}),
            collections.Counter("aab"),
            collections.OrderedDict(a=1),
            collections.UserDict(a=1),
            collections.UserList([1]),
            collections.UserString("a"),
            collections.defaultdict(list, {"a": [1]}),
            collections.deque([1], 3),
            datetime.date(2026, 2, 3),
            datetime.datetime(2026, 2, 3, 4, 5, fold=1),
            datetime.datetime(2026, 2, 3, tzinfo=datetime.timezone(datetime.timedelta(hours=1), "x")),
            datetime.datetime(2026, 2, 3, tzinfo=zoneinfo.ZoneInfo("UTC")),
            datetime.time(4, 5),
            datetime.date(2026, 2, 3).isocalendar(),
            decimal.Decimal("1.10"),
            decimal.Context(prec=5),
            email.headerregistry.Address("a", "b", "c"),
            fractions.Fraction(1, 3),
            functools.partial(int, base=2),
            http.HTTPStatus.NOT_FOUND,
            http.cookies.SimpleCookie("a=b"),
            inspect.signature(lambda a, *, b=1: None),
            ipaddress.ip_address("127.0.0.1"),
            ipaddress.ip_interface("::1/64"),
            ipaddress.ip_network("10.0.0.0/8"),
            operator.add,
            operator.attrgetter("a"),
            operator.itemgetter(1),
            operator.methodcaller("a", 1),
            pathlib.Path("/a/b"),
            pathlib.PurePath("a/b"),
            pathlib.PurePosixPath("/a/b"),
            pathlib.PureWindowsPath("c:/a/b"),
            [pathlib.Path("/a"), {pathlib.Path("/b"): "pathlib._local"}],
            re.compile("a", re.IGNORECASE),
            re.IGNORECASE | re.MULTILINE,
            signal.SIGTERM,
            socket.AF_INET,
            ssl.TLSVersion.TLSv1_2,
            statistics.NormalDist(1, 2),
            struct.error("a"),
            time.struct_time(range(9)),
            types.GenericAlias(list, (int,)),
            types.SimpleNamespace(a=1),
            typing.Optional[int],  # noqa: UP045 - it is of another type
            int | None,
            urllib.parse.urlparse("http://a/b"),
            urllib.parse.urlsplit("http://a/b"),
            uuid.UUID(int=1),
            uuid.SafeUUID.unknown,
            zoneinfo.ZoneInfo("UTC"),
            ValueError("a"),
            KeyError("a"),
            OSError(2, "no"),
            FileNotFoundError(2, "no", "f"),
            UnicodeDecodeError("utf-8", b"a", 0, 1, "r"),
            UnicodeEncodeError("utf-8", "a", 0, 1, "r"),
            SyntaxError("m", ("f", 1, 2, "t")),
            StopIteration(1),
            ImportError("a", name="b"),
            json.JSONDecodeError("m", "d", 0),
            subprocess.CalledProcessError(1, "a"),
            subprocess.CompletedProcess("a", 1),
            urllib.error.URLError("a"),
            decimal.InvalidOperation("a"),
        )
    )
}
"""A value of each type of the standard library that is likely to be an argument."""


def written() -> dict[str, str]:
    """Return the payload of a call of every kind in each protocol that can pickle it, by kind and protocol."""
    made = {}
    for kind, factory in zoo.KINDS.items():
        func, _, _ = factory("state")
        for protocol in PROTOCOLS:
            data = dumps(call(func, *ARGUMENTS, named=ARGUMENTS), protocol)
            made[f"{kind}, protocol {protocol}"] = base64.b64encode(data).decode()
    for name, value in STANDARD.items():
        for protocol in PROTOCOLS:
            made[f"{name}, protocol {protocol}"] = base64.b64encode(dumps(call(zoo.function, value), protocol)).decode()
    return made


def differences(payloads: dict[str, str]) -> Iterator[str]:
    """Run each of ``payloads``, and yield a description of each unexpected result."""
    for name, text in payloads.items():
        kind = name.rpartition(", ")[0]
        numbers = {known.rpartition(" ")[2]: value for known, value in STANDARD.items()}
        number = kind.rpartition(" ")[2]
        if number in numbers:
            # The name of a class's module may differ between versions, the number doesn't.
            result: Any = loads(base64.b64decode(text)).run()
            got, wanted = result[2][0], numbers[number]
            if got != wanted and repr(got) != repr(wanted):
                yield f"{name}: {got!r}"
            continue
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

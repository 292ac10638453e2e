"""Forged requests, and requests with ambiguous framing, over the sockets of real servers.

gunicorn drops headers with underscores since version 22. Version 21.2 and wsgiref treat underscores as hyphens.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.corpus import (
    BAD_SIGNATURES,
    BODY,
    METHODS,
    NAMES,
    PLACES,
    QUEUES,
    SENDERS,
    SIGNATURES,
    TASK,
    USER_IPS,
    Case,
    legitimate,
    signature_of,
    spellings,
)
from tests.support.serving import COMMANDS, FOLDING, OLD_GUNICORN, REPLACING, RunningServer, host_of
from tests.support.watching import KEY, NAME, QUEUE, USER_IP

HEADERS = {NAME: "X-AppEngine-TaskName", QUEUE: "X-AppEngine-QueueName", USER_IP: "X-AppEngine-User-IP"}
PATH = "/_cb/deferred/tests.support.sample/note"


@pytest.fixture(scope="module", params=COMMANDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Run each server in its own process."""
    if request.param == "gunicorn 21.2":
        assert (OLD_GUNICORN / "gunicorn").is_dir(), "it is not installed: say `make .venvs/gunicorn-21.2`"
    running = RunningServer(request.param, tmp_path_factory.mktemp("server") / "output")
    yield running
    running.stop()


def http(place: str, *headers: str, line: str = f"POST {PATH} HTTP/1.1", body: bytes = BODY) -> bytes:
    """Return a request with exactly these headers and body."""
    lines = [line, f"Host: {host_of(place)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def sent(case: Case) -> bytes:
    """Return a case's request as the platform forwards it to the server."""
    headers = []
    for key, value in ((NAME, case.name), (QUEUE, case.queue), (USER_IP, case.user_ip)):
        exact, underscored = spellings(case, key, value)
        if exact is not None:
            headers.append(f"{HEADERS[key]}: {exact}")
        if underscored is not None:
            headers.append(f"{HEADERS[key].replace('-', '_')}: {underscored}")
    signature = signature_of(case)
    if signature is not None:
        headers.append(f"X-Deferred-Signature: {signature}")
    headers.append(f"Content-Length: {len(BODY)}")
    return http(case.place, *headers, line=f"{case.method} {PATH} HTTP/1.1")


def told(answer: bytes, header: str) -> int:
    """Return the number in a header of the response."""
    (number,) = re.findall(rf"\r\n{header}: (\d+)\r\n".encode(), answer, re.IGNORECASE)
    return int(number)


@pytest.mark.parametrize("place", PLACES)
def test_exactly_the_task_queues_requests_run(server: RunningServer, place: str) -> None:
    """Of the requests that differ from a task's in up to three ways, exactly those that the oracle accepts run."""
    usual = ("the queue", "task1", "default", "0.1.0.2", "good", "POST")
    choices = (SENDERS, NAMES, QUEUES, USER_IPS, [*SIGNATURES, *BAD_SIGNATURES], METHODS)
    folds = "folds underscores" if server.name in FOLDING else "drops underscores"
    wrong: list[object] = []
    ran = 0
    for chosen in itertools.product(*choices):
        if sum(one != other for one, other in zip(chosen, usual, strict=True)) > 3:
            continue
        case = Case(place, chosen[0], folds, *chosen[1:])
        answer = server.ask(sent(case))
        expected = legitimate(case)
        as_expected = answer[9:10] == (b"2" if expected else b"4") and told(answer, "X-Ran") == expected
        if not as_expected or (not expected and (told(answer, "X-Seen") or b"Traceback" in answer)):
            wrong.append((case, answer))
        ran += expected

    assert wrong[:5] == [], server.output
    assert ran > 0
    assert server.ran() == ran


def signed(*headers: str, line: str = f"POST {PATH} HTTP/1.1", body: bytes = BODY) -> bytes:
    """Return a task's signed request with further headers, one of which may give its length."""
    own = ("X-AppEngine-TaskName: task1", "X-AppEngine-QueueName: default", f"X-Deferred-Signature: {GOOD}")
    return http("elsewhere", *own, *headers, line=line, body=body)


def pieces(*sizes: bytes, body: bytes = BODY, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return a chunked body with the given hexadecimal sizes, which may be wrong."""
    return b"".join(size + b"\r\n" + body + b"\r\n" for size in sizes) + end


GOOD = TASK.with_key(KEY)
SIZE = b"%x" % len(BODY)
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = "Transfer-Encoding: chunked"
# An outside request's headers, as App Engine forwards them.
_STRANGER = ("X_AppEngine_TaskName: task1", "X_AppEngine_QueueName: default", "X-AppEngine-User-IP: 198.51.100.7")
FORGED = http("standard", LENGTH, *_STRANGER)
KEEP = b"Connection: close\r\n"
# The number is how often the request must run; a pair is the maximum and the minimum.
FRAMINGS: dict[str, tuple[bytes, int | tuple[int, int]]] = {
    "as it should be": (signed(LENGTH), 1),
    "the length twice": (signed(LENGTH, LENGTH), (1, 0)),
    "two lengths": (signed(LENGTH, "Content-Length: 3"), (1, 0)),
    "two lengths, the other way": (signed("Content-Length: 3", LENGTH), 0),
    "two lengths in one": (signed(f"{LENGTH}, {len(BODY)}"), (1, 0)),
    "a length with a plus": (signed(f"Content-Length: +{len(BODY)}"), 0),
    "a negative length": (signed("Content-Length: -1"), 0),
    "a length in hexadecimal": (signed(f"Content-Length: 0x{len(BODY):x}"), 0),
    "a length with an underscore": (signed(f"Content-Length: {str(len(BODY))[0]}_{str(len(BODY))[1:]}"), 0),
    "a length of thousands of digits": (signed(f"Content-Length: {'9' * 5000}"), 0),
    "a length of zero": (signed("Content-Length: 0"), 0),
    "a length that is too short": (signed(f"Content-Length: {len(BODY) - 1}"), 0),
    "a length that is too long": (signed(f"Content-Length: {len(BODY) + 1}"), 0),
    "no length": (signed(), 0),
    "an underscored length": (signed(LENGTH.replace("-", "_")), 0),
    "one chunk": (signed(CHUNKED, body=pieces(SIZE)), (1, 0)),
    "chunks and a length": (signed(CHUNKED, LENGTH, body=pieces(SIZE)), (1, 0)),
    "a length and chunks": (signed("Content-Length: 4", CHUNKED, body=pieces(SIZE)), (1, 0)),
    "two chunks": (signed(CHUNKED, body=pieces(SIZE, SIZE)), 0),
    "a chunk cut off": (signed(CHUNKED, body=pieces(SIZE)[:-20]), 0),
    "no last chunk": (signed(CHUNKED, body=pieces(SIZE, end=b"")), 0),
    "a chunk that lies": (signed(CHUNKED, body=pieces(b"%x" % (len(BODY) + 1))), 0),
    "a chunk of no number": (signed(CHUNKED, body=pieces(b"zz")), 0),
    "a negative chunk": (signed(CHUNKED, body=pieces(b"-" + SIZE)), 0),
    "a chunk with an underscore": (signed(CHUNKED, body=pieces(b"0_" + SIZE)), (1, 0)),
    "a chunk with an extension": (signed(CHUNKED, body=pieces(SIZE + b";a=b")), (1, 0)),
    "a trailer": (signed(CHUNKED, body=pieces(SIZE, end=b"0\r\nX-AppEngine-TaskName: task1\r\n\r\n")), (1, 0)),
    "an encoding that isn't there": (signed("Transfer-Encoding: xchunked", LENGTH), (1, 0)),
    "an encoding twice": (signed(CHUNKED, CHUNKED, body=pieces(SIZE)), (1, 0)),
    "an encoding with a blank": (signed("Transfer-Encoding : chunked", LENGTH), (1, 0)),
    "something after it": (signed(LENGTH, body=BODY + b"GARBAGE"), 1),
    "a forged one after it": (signed(LENGTH, body=BODY + FORGED).replace(KEEP, b"", 1), 1),
    "a forged one in its body": (
        signed(f"Content-Length: {len(FORGED)}", body=FORGED).replace(KEEP, b"", 1),
        0,
    ),
    "a forged one after no chunk": (
        signed(CHUNKED, f"Content-Length: {len(FORGED) + 5}", body=b"0\r\n\r\n" + FORGED).replace(KEEP, b"", 1),
        0,
    ),
    "a forged one behind a length": (
        signed("Content-Length: 0", CHUNKED, body=pieces(b"%x" % len(FORGED), body=FORGED)).replace(KEEP, b"", 1),
        0,
    ),
    "two that are signed": (signed(LENGTH).replace(KEEP, b"", 1) + signed(LENGTH), (2, 1)),
    "the name twice": (signed(LENGTH, "X-AppEngine-TaskName: task1"), 0),
    "the queue twice": (signed(LENGTH, "X-AppEngine-QueueName: default"), 0),
    "the queue twice, once with underscores": (signed(LENGTH, "X_AppEngine_QueueName: other"), (1, 0)),
    "the signature twice": (signed(LENGTH, f"X-Deferred-Signature: {GOOD}"), 0),
    "two signatures": (signed(LENGTH, "X-Deferred-Signature: v1"), 0),
    "a header of ours": (signed(LENGTH, "X-Deferred-Namespace: tenant"), 0),
    "a header of ours with underscores": (signed(LENGTH, "X_Deferred_Namespace: tenant"), (1, 0)),
    "a header that goes on": (signed(LENGTH, "X-Other: a\r\n\tX-AppEngine-TaskName: task1"), (1, 0)),
    "a name that goes on": (http("elsewhere", LENGTH, "X-AppEngine-TaskName:\r\n task1"), 0),
    "a name with a blank": (FORGED.replace(b"X_AppEngine_TaskName", b"X-AppEngine-TaskName "), 0),
    "a forged one": (FORGED, 0),
    "a forged one that names an address": (
        http("standard", LENGTH, "Remote-Addr: 0.1.0.2", "X-AppEngine-User-IP: 0.1.0.2", "X-Forwarded-For: 0.1.0.2"),
        0,
    ),
    "a bare line feed": (signed(LENGTH).replace(b"\r\n", b"\n"), (1, 0)),
    "a line feed in a header": (signed(LENGTH, "X-Other: a\nX-AppEngine-TaskName: b"), (1, 0)),
    "a null in a header": (signed(LENGTH, "X-AppEngine-TaskETA: \0"), (1, 0)),
    "a path with a part in percents": (signed(LENGTH, line="POST /_cb/deferred/sample%2Fnote HTTP/1.1"), (1, 0)),
    "another path": (signed(LENGTH, line="POST /_cb/deferred/tests.support.sample/pair HTTP/1.1"), 0),
    "a path with two slashes": (signed(LENGTH, line=f"POST /{PATH} HTTP/1.1"), (1, 0)),
    "a path with dots": (signed(LENGTH, line=f"POST /x/..{PATH} HTTP/1.1"), 0),
    "a path with a null": (signed(LENGTH, line=f"POST {PATH}%00 HTTP/1.1"), 0),
    "a query": (signed(LENGTH, line=f"POST {PATH}?a=b HTTP/1.1"), 0),
    "a whole URL": (signed(LENGTH, line=f"POST http://place3{PATH} HTTP/1.1"), (1, 0)),
    "HTTP 1.0": (signed(LENGTH, line=f"POST {PATH} HTTP/1.0"), 1),
    "HTTP 0.9": (f"GET {PATH}\r\n\r\n".encode(), 0),
    "HTTP 3.7": (signed(LENGTH, line=f"POST {PATH} HTTP/3.7"), (1, 0)),
    "another method": (signed(LENGTH, line=f"PUT {PATH} HTTP/1.1"), 0),
    "a method of another kind": (signed(LENGTH, line=f"post {PATH} HTTP/1.1"), 0),
    "a script's name": (signed(LENGTH, "Script-Name: /x", "SCRIPT_NAME: /x"), (1, 0)),
    "nothing": (b"", 0),
    "no HTTP": (b"\x80\x05\x95" + BODY, 0),
}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_request_that_is_framed_otherwise_runs_no_other_task(server: RunningServer, framing: str) -> None:
    """However a request is framed, at most the signed task runs, and the server continues to work."""
    request, expected = FRAMINGS[framing]
    most, least = (expected, expected) if isinstance(expected, int) else expected

    answer = server.ask(request)

    assert least <= server.ran() <= most, (answer, server.output)
    assert b"Traceback" not in answer
    seen = re.findall(rb"\r\nX-Ran: (\d+)\r\nX-Seen: (\d+)\r\n", answer, re.IGNORECASE)
    assert [unpickled for ran, unpickled in seen if ran == b"0" and unpickled != b"0"] == []
    # Our response is never a 5xx, but a server may answer 501 by itself.
    assert re.findall(rb"HTTP/1.[01] 5\d\d [^\0]*?X-Ran", answer) == []


@pytest.mark.parametrize("name", REPLACING)
@pytest.mark.parametrize("forged_first", [True, False])
def test_a_server_that_keeps_the_last_spelling_runs_only_signed_tasks(
    name: str, forged_first: bool, tmp_path: Path
) -> None:
    """Where a stranger can replace the platform's header with the user's IP, headers alone are not trusted."""
    server = RunningServer(name, tmp_path / "output")
    try:
        forged, platform = ["X_AppEngine_User_IP: 0.1.0.2"], ["X-AppEngine-User-IP: 198.51.100.7"]
        ips = forged + platform if forged_first else platform + forged
        names = ["X_AppEngine_TaskName: task1", "X_AppEngine_QueueName: default"]

        assert b" 403 " in server.ask(http("standard", LENGTH, *names, *ips), ends=False).partition(b"\r\n")[0]
        assert server.ran() == 0
        assert b" 200 " in server.ask(signed(LENGTH), ends=False).partition(b"\r\n")[0]
        assert server.ran() == 1, server.output
    finally:
        server.stop()

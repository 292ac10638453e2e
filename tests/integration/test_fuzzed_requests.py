"""A task's request with random changes, twenty thousand times (with DEFERRED_SOAK a million).

Hypothesis chooses one or more changes: flipped bits, cuts and additions in the signature and the body, other lengths,
headers, methods and paths. An oracle compares the request with what was signed and says what the handler should do. A
request that is still the task's runs. Any other request gets a 4xx, nothing of it is imported, decompressed or
unpickled, and neither the client nor the log gets any details.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import pickle
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deferred_middleware import call
from deferred_middleware.calls import payload
from deferred_middleware.execution.middleware import DeferredMiddleware
from deferred_middleware.wire import protocol
from tests.support import sample
from tests.support.delivering import Response, request, task_environ
from tests.support.watching import KEY, NAME, QUEUE, SIGNATURE, USER_IP, Signed, middleware, watch

NOW = time.time()
SECRET = "a secret of the payload"
BODY = payload.dumps(call(sample.note, SECRET, number=7), 5)
OURS = {"X-Deferred-Namespace": "tenant"}
SIGNED = Signed(body=BODY, headers=OURS, now=NOW).with_key(KEY)
SIGNED_WITH_NAME = Signed(body=BODY, headers=OURS, name="task1", now=NOW).with_key(KEY)
NAMESPACE = protocol.environ_key("X-Deferred-Namespace")

PLACES = ["elsewhere", "elsewhere, with its name", "standard with a key", "standard"]
AT_ONCE = 20
REQUESTS = 1_000_000 if os.environ.get("DEFERRED_SOAK") else 20_000
ANSWERS = {
    b"forbidden\n",
    b"send tasks with POST\n",
    b"no such page\n",
    b"the body can't be read\n",
    b"the body has no Content-Length\n",
    b"the body is too large\n",
}

Environ = dict[str, Any]
Change = Callable[[Environ], None]


class Broken(io.BytesIO):
    """A body whose connection breaks off after some bytes."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read what is left, and then fail as a server would."""
        found = super().read(size)
        if not found:
            raise ConnectionResetError("the client is gone")
        return found


def put(environ: Environ, key: str, value: str | None) -> None:
    """Set a key of the request, or delete it."""
    environ.pop(key, None)
    if value is not None:
        environ[key] = value


def flip(environ: Environ, key: str, at: int, bit: int) -> None:
    """Flip one bit of a value."""
    text = environ.get(key) or "?"
    at %= len(text)
    environ[key] = text[:at] + chr(ord(text[at]) ^ 1 << bit) + text[at + 1 :]


def cut(environ: Environ, key: str, at: int) -> None:
    """Keep only the start of a value."""
    text = environ.get(key) or ""
    environ[key] = text[: at % (len(text) + 1)]


def add(environ: Environ, key: str, text: str) -> None:
    """Append to a value, as servers do for a repeated header."""
    environ[key] = (environ.get(key) or "") + text


def send(environ: Environ, make: Callable[[bytes], bytes], *, counted: bool) -> None:
    """Replace the body; if ``counted``, also set its length."""
    body = make(environ["wsgi.input"].getvalue())
    environ["wsgi.input"] = io.BytesIO(body)
    if counted:
        environ["CONTENT_LENGTH"] = str(len(body))


def chunked(environ: Environ) -> None:
    """Send the body without a length, through a server that marks its end."""
    environ.pop("CONTENT_LENGTH", None)
    environ["HTTP_TRANSFER_ENCODING"] = "chunked"
    environ["wsgi.input_terminated"] = True


def break_off(environ: Environ, at: int) -> None:
    """Break the connection off after ``at`` bytes."""
    environ["wsgi.input"] = Broken(environ["wsgi.input"].getvalue()[:at])


def _flipped(body: bytes, at: int, bit: int) -> bytes:
    at %= max(len(body), 1)
    return body[:at] + bytes([(body[at] if body else 0) ^ 1 << bit]) + body[at + 1 :]


def _cut(body: bytes, at: int) -> bytes:
    return body[: at % (len(body) + 1)]


header_text = st.text(st.characters(max_codepoint=255), max_size=20)
headers = st.sampled_from([NAME, QUEUE, USER_IP, SIGNATURE, NAMESPACE, "HTTP_X_DEFERRED_RETRY_LIMIT"])
others = st.sampled_from(["REMOTE_ADDR", "SERVER_SOFTWARE", "CONTENT_TYPE", "HTTP_HOST", "HTTP_X_APPENGINE_TASKETA"])
bits, places = st.integers(0, 7), st.integers(0, 400)
bodies = st.binary(max_size=80) | st.sampled_from(
    [
        b"cos\nsystem\n(S'true'\ntR.",
        payload.dumps(call(sample.note, "another"), 5),
        zlib.compress(BODY),
        zlib.compress(b"\0" * 1_000_000),
        protocol.OVERFLOW_MAGIC + b"{}",
        pickle.dumps(None, 0),
    ]
)
paths = st.text(st.characters(max_codepoint=0x170), max_size=12) | st.sampled_from(
    [
        "",
        "/",
        "/_cb/deferred/",
        "/_cb/deferred/tests.support.sample/pair",
        "/_cb/deferred/tests.support.sample/note/",
        "//_cb/deferred/tests.support.sample/note",
    ]
)
methods = st.sampled_from(["GET", "HEAD", "PUT", "post", "POST ", "", "DELETE"])
lengths = st.integers(-2, 2 * len(BODY)).map(str) | st.sampled_from(["9" * 30, "", " 1", "1,1", "0x10", "²", "1e3"])


def changing(change: Callable[..., None], **drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[Change]:
    """Return a strategy that draws the arguments of ``change``."""
    return st.fixed_dictionaries(drawn).map(lambda arguments: functools.partial(change, **arguments))


makers: st.SearchStrategy[Callable[[bytes], bytes]] = st.one_of(
    st.builds(lambda at, bit: functools.partial(_flipped, at=at, bit=bit), places, bits),
    places.map(lambda at: functools.partial(_cut, at=at)),
    bodies.map(lambda more: lambda body: body + more),
    bodies.map(lambda other: lambda _: other),
)
changes: st.SearchStrategy[Change] = st.one_of(
    changing(flip, key=st.just(SIGNATURE) | headers | st.just("PATH_INFO"), at=places, bit=bits),
    changing(put, key=headers | others, value=header_text | st.none()),
    changing(cut, key=headers, at=places),
    changing(add, key=headers, text=header_text),
    changing(put, key=st.sampled_from(["PATH_INFO", "SCRIPT_NAME"]), value=paths),
    changing(put, key=st.just("QUERY_STRING"), value=header_text),
    changing(put, key=st.just("REQUEST_METHOD"), value=methods),
    changing(send, make=makers, counted=st.booleans()),
    changing(put, key=st.just("CONTENT_LENGTH"), value=lengths),
    changing(chunked),
    changing(break_off, at=places),
)
# App Engine standard removes these headers from outside requests, so at least one is missing or wrong.
betrayals: st.SearchStrategy[Change] = st.one_of(
    changing(put, key=st.sampled_from([NAME, QUEUE]), value=st.sampled_from([None, ""])),
    changing(add, key=st.sampled_from([NAME, QUEUE]), text=header_text.map(",".__add__)),
    changing(put, key=st.just(USER_IP), value=st.builds(str.__add__, st.sampled_from(["x", "0.1.0.2,"]), header_text)),
)
requests = st.tuples(st.lists(changes, max_size=3), betrayals)


def is_still_the_task(place: str, environ: Environ) -> bool:
    """Return whether everything that the handler relies on is as it was signed, whatever else has changed."""
    stream, length = environ["wsgi.input"], environ.get("CONTENT_LENGTH")
    body = stream.getvalue()
    if length:
        if not (length.isascii() and length.isdigit()) or int(length) > len(body):
            return False
        body = body[: int(length)]
    elif "wsgi.input_terminated" not in environ or isinstance(stream, Broken):
        return False
    name = environ.get(NAME, "")
    return (
        (environ["REQUEST_METHOD"], environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"])
        == ("POST", "", "/_cb/deferred/tests.support.sample/note", "")
        and (name == "task1" if place == "elsewhere, with its name" else bool(name) and "," not in name)
        and environ.get(QUEUE) == "default"
        and environ.get(USER_IP, "0.1.0.2") == "0.1.0.2"
        and environ.get(SIGNATURE) in (SIGNED, SIGNED_WITH_NAME)
        and environ.get(NAMESPACE, "").strip(" \t") == "tenant"
        and "HTTP_X_DEFERRED_RETRY_LIMIT" not in environ
        and body == BODY
    )


def answered(app: DeferredMiddleware, environ: Environ) -> Response:
    """Return the app's response, checked by wsgiref's validator unless the validator would reject the request."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if (
        environ["REQUEST_METHOD"] in ("POST", "GET", "HEAD", "PUT", "DELETE")
        and (length.isascii() and length.isdigit())
        and (environ["PATH_INFO"] or environ["SCRIPT_NAME"])
        and all(not (p := environ[key]) or p.startswith("/") for key in ("PATH_INFO", "SCRIPT_NAME"))
        and environ["SCRIPT_NAME"] != "/"
    ):
        return request(app, environ)
    started: list[tuple[str, Any]] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.append((status, headers))

    content = b"".join(app(environ, start_response))
    ((status, headers),) = started
    return Response(status, headers, content)


class Discretion(logging.Handler):
    """Reads log records, and keeps those that contain secrets."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Look for the key, the payload and the signature."""
        message = record.getMessage()
        if str.__str__(KEY) in message or SECRET in message or SIGNED[-64:] in message:
            self.told.append(message)


@contextlib.contextmanager
def discreet() -> Iterator[Discretion]:
    """Install this handler alone: others, such as pytest's, would store the records and read source files for them."""
    logger, handler = logging.getLogger("deferred_middleware"), Discretion()
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [handler], False
    yield handler
    logger.handlers, logger.propagate = before


@pytest.mark.parametrize("place", PLACES)
def test_a_changed_request_is_refused_unread(place: str) -> None:
    """A request that is still the task's runs; any other gets a 4xx without details, and its body is not read."""
    elsewhere = place.startswith("elsewhere")
    app = middleware(None if elsewhere else "standard", keys=() if place == "standard" else (KEY,))
    base = task_environ(BODY, **{SIGNATURE: SIGNED_WITH_NAME if "name" in place else SIGNED, NAMESPACE: "tenant"})
    count = {True: 0, False: 0}

    @hypothesis_settings(
        max_examples=REQUESTS // len(PLACES) // AT_ONCE,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.lists(requests, min_size=AT_ONCE, max_size=AT_ONCE))
    def fuzz(batch: list[tuple[list[Change], Change]]) -> None:
        for several, betrayal in batch:
            environ = {**base, "wsgi.input": io.BytesIO(BODY), "wsgi.errors": io.StringIO()}
            for change in several:
                change(environ)
            if place == "standard":
                betrayal(environ)
            elif place == "standard with a key" and SIGNATURE not in environ:
                environ[SIGNATURE] = ""  # with no signature at all, the platform would have to prove the origin
            legitimate = place != "standard" and is_still_the_task(place, environ)
            sample.ran.clear()
            with watch() as seen:
                response = answered(app, environ)
            count[legitimate] += 1
            if legitimate:
                assert (response.status, sample.ran) == (200, [((SECRET,), {"number": 7})])
            else:
                assert response.status // 100 == 4
                assert response.body in ANSWERS or environ["REQUEST_METHOD"] == "HEAD"
                assert (seen, sample.ran) == ([], [])

    with discreet() as log:
        fuzz()
    assert log.told == []
    assert sum(count.values()) >= REQUESTS // len(PLACES)
    # Outside App Engine standard some requests run, so the refusals are caused by the changes.
    assert (count[True] > 0) == (place != "standard")

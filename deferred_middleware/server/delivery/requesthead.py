"""The head of a request, read into a WSGI environment.

This is for requests of the queue process, which writes them in one way only. So little is accepted, and whatever is odd
is refused; a request of anybody else is waitress's to read. What an app sees is the same from both.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

# https://www.rfc-editor.org/rfc/rfc9112#section-3
_FIRST_LINE = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Z]+) (/[\x21-\x7e]*) HTTP/1\.1")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._~:@!$&'()*+,;=-]*(?:/[A-Za-z0-9._~:@!$&'()*+,;=-]+)*/?")
_LENGTH = re.compile(r"[0-9]{1,10}")
# Only a proxy may say these, and there is none.
_OF_PROXIES = frozenset({"FORWARDED"} | {f"X_FORWARDED_{what}" for what in ("FOR", "HOST", "PROTO", "PORT", "BY")})
_UNPREFIXED = frozenset({"CONTENT_LENGTH", "CONTENT_TYPE"})
_MAX_BODY_BYTES = 1 << 30
_MAX_KNOWN_NAMES = 1000

# What names of headers become, which are the same in each request; "" for those that the app doesn't see.
_known_names: dict[str, str] = {}


class RequestError(ValueError):
    """A request can't be answered. ``status`` is what is answered instead."""

    def __init__(self, status: str) -> None:
        self.status = status
        super().__init__(status)


def read_head(head: bytes, environ: dict[str, Any]) -> int:
    """Put what a request's head says into ``environ``; return how many bytes its body has.

    ``head`` is without the empty line at its end. Raises :class:`RequestError` for one that the queue process would
    not send.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    matched = _FIRST_LINE.fullmatch(first)
    # A lone CR or LF may end a line for whoever reads it later.
    if matched is None or head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise RequestError("400 Bad Request")
    environ["REQUEST_METHOD"], target = matched.groups()
    environ["REQUEST_URI"] = target
    if _PLAIN_PATH.fullmatch(target):
        environ["PATH_INFO"], environ["QUERY_STRING"] = target, ""
    else:
        path, _, environ["QUERY_STRING"] = target.partition("#")[0].partition("?")
        environ["PATH_INFO"] = "/" + unquote_to_bytes(path).decode("latin-1").lstrip("/")
    for line in lines:
        name, colon, value = line.partition(":")
        key = _known_names.get(name)
        if key is None:
            key = _key(name)
        if not colon:
            raise RequestError("400 Bad Request")
        if key:
            value = value.strip(" \t")
            environ[key] = f"{environ[key]}, {value}" if key in environ else value
    if "HTTP_TRANSFER_ENCODING" in environ or "HTTP_EXPECT" in environ:
        raise RequestError("501 Not Implemented")
    length = environ.get("CONTENT_LENGTH", "0")
    if not _LENGTH.fullmatch(length):
        raise RequestError("400 Bad Request")
    if int(length) >= _MAX_BODY_BYTES:
        raise RequestError("413 Content Too Large")
    return int(length)


def _key(name: str) -> str:
    """Return under which key a header goes into the environment; an empty one for what the app is not to see."""
    if not _NAME.fullmatch(name):
        raise RequestError("400 Bad Request")
    folded = name.upper().replace("-", "_")
    key = folded if folded in _UNPREFIXED else f"HTTP_{folded}"
    if "_" in name or folded in _OF_PROXIES:
        key = ""
    if len(_known_names) < _MAX_KNOWN_NAMES:
        _known_names[name] = key
    return key

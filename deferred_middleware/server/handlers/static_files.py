"""Answer a request with a file, as the static handlers of ``app.yaml`` say.

Conditional requests, ``HEAD`` and ranges are answered by webob. A file or folder whose name begins with a dot is never
served, except ``.well-known``: by default App Engine doesn't upload such files (``skip_files``), and the data directory
of the local server, which holds the secret key, is one.
"""

from __future__ import annotations

import email.utils
import mimetypes
import os
import re
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import webob

from deferred_middleware.server.config.handlers import HandlerRule

_BLOCK_BYTES = 64 * 1024
_ALLOWED = ("GET", "HEAD")
_DOTTED_FOLDER = ".well-known"


def path_of(rule: HandlerRule, match: re.Match[str]) -> Path | None:
    """Return the path of the file for a matched URL; None if it must not be served, whether or not it exists."""
    assert rule.file is not None
    name = match.expand(rule.file)
    # The upload pattern is for the paths of files, relative to the folder of app.yaml.
    if rule.upload is not None and not re.fullmatch(rule.upload, name):
        return None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or name.endswith("/") or "\0" in name:
        return None
    if any(part.startswith(".") and part != _DOTTED_FOLDER for part in parts):
        return None  # ".." among them
    return Path(rule.root, *parts)


def response_for(rule: HandlerRule, match: re.Match[str], request: webob.Request) -> webob.Response:
    """Return the response to a request that a static handler matches."""
    if request.method not in _ALLOWED:
        return _plain(405, "this is a static file, which takes GET and HEAD", {"Allow": ", ".join(_ALLOWED)})
    path = path_of(rule, match)
    try:
        opened = None if path is None else _open(path)
    except PermissionError as error:
        return _plain(403, f"the file can't be read: {error.strerror}")
    except (OSError, ValueError):
        opened = None
    if path is None or opened is None:
        return _plain(404, "there is no such file")
    file, found = opened
    guessed, encoding = mimetypes.guess_type(path.name)
    response = webob.Response(
        app_iter=_FileBody(file),
        content_length=found.st_size,
        content_type=rule.mime_type or guessed or "application/octet-stream",
        last_modified=found.st_mtime,
        etag=f"{found.st_mtime_ns:x}-{found.st_size:x}",
        accept_ranges="bytes",
        conditional_response=True,
    )
    if "charset" not in (rule.mime_type or ""):
        response.charset = None  # webob would add one
    if encoding and rule.mime_type is None:
        response.content_encoding = encoding
    _set_expiration(response, rule.expiration_seconds)
    for name, value in rule.http_headers.items():
        response.headers[name] = str(value)
    return response


def _open(path: Path) -> tuple[BinaryIO, os.stat_result] | None:
    """Open a file; None if it is none, such as a folder or a pipe, which would block."""
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    file = path.open("rb")
    return file, os.fstat(file.fileno())


def _set_expiration(response: webob.Response, seconds: int | None) -> None:
    if seconds is None:
        # As dev_appserver did: an edit is visible at once.
        response.headers["Cache-Control"] = "no-cache"
        return
    response.headers["Cache-Control"] = f"public, max-age={seconds}"
    response.headers["Expires"] = email.utils.formatdate(time.time() + seconds, usegmt=True)


def _plain(status: int, text: str, headers: dict[str, str] | None = None) -> webob.Response:
    response = webob.Response(status=status, text=f"{text}\n", content_type="text/plain")
    for name, value in (headers or {}).items():
        response.headers[name] = value
    return response


class _FileBody:
    """The content of a file, or a part of it, for webob. The file is closed in any case."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __iter__(self) -> Iterator[bytes]:
        return self._blocks(0, None)

    def app_iter_range(self, start: int, stop: int | None) -> _FilePart:
        """Return the bytes from ``start`` to before ``stop``."""
        return _FilePart(self, self._blocks(start, stop))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _blocks(self, start: int, stop: int | None) -> Iterator[bytes]:
        self._file.seek(start)
        while stop is None or start < stop:
            block = self._file.read(_BLOCK_BYTES if stop is None else min(_BLOCK_BYTES, stop - start))
            if not block:
                break
            start += len(block)
            yield block
        self._file.close()


class _FilePart:
    def __init__(self, body: _FileBody, blocks: Iterator[bytes]) -> None:
        self._body = body
        self._blocks = blocks

    def __iter__(self) -> Iterator[bytes]:
        return self._blocks

    def close(self) -> None:
        self._body.close()

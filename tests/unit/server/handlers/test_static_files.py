"""Tests of static files: which file a URL means, and the response."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
import webob

from deferred_middleware.server.config.handlers import HandlerRule
from deferred_middleware.server.handlers.front import HandlersApp
from tests.unit.server.handlers.test_front import app, send

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with some files, and one beside it."""
    folder = tmp_path / "app" / "static"
    (folder / "sub").mkdir(parents=True)
    (folder / ".deferred").mkdir()
    (folder / ".well-known").mkdir()
    for name, content in {
        "style.css": b"a {}",
        "sub/photo 1.png": CONTENT,
        "sub/\u00e9.txt": b"accent",
        ".deferred/secret.key": b"key",
        ".env": b"key",
        ".well-known/x.txt": b"known",
        "noext": b"?",
        "data.tar.gz": gzip.compress(b"x"),
        "../other.txt": b"other",
    }.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe")
    return folder


def get(rule: HandlerRule, url: str, method: str = "GET", **headers: str) -> webob.Response:
    """Return the response to a request."""
    request = webob.Request.blank(
        url, method=method, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    return send(request, HandlersApp(app, [rule]))


def folder_rule(root: Path, **options: Any) -> HandlerRule:
    """Return the rule of a static folder."""
    return HandlerRule(pattern="(?:/static)/(.*)", root=str(root), file=r"\1", **options)


@pytest.mark.parametrize(
    ("url", "status", "content_type", "body"),
    [
        ("/static/style.css", 200, "text/css", b"a {}"),
        ("/static/sub/photo%201.png", 200, "image/png", CONTENT),
        ("/static/sub/%C3%A9.txt", 200, "text/plain", b"accent"),
        ("/static//style.css", 200, "text/css", b"a {}"),
        ("/static/./style.css", 200, "text/css", b"a {}"),
        ("/static/noext", 200, "application/octet-stream", b"?"),
        ("/static/.well-known/x.txt", 200, "text/plain", b"known"),
        ("/static/", 404, None, None),
        ("/static/sub", 404, None, None),
        ("/static/sub/", 404, None, None),
        ("/static/style.css/", 404, None, None),
        ("/static/style.css/x", 404, None, None),
        ("/static/none", 404, None, None),
        ("/static/pipe", 404, None, None),
        ("/static/../other.txt", 404, None, None),
        ("/static/%2e%2e/other.txt", 404, None, None),
        ("/static/sub/../../other.txt", 404, None, None),
        ("/static/sub/../style.css", 404, None, None),
        ("/static//etc/passwd", 404, None, None),
        ("/static/.env", 404, None, None),
        ("/static/.deferred/secret.key", 404, None, None),
        ("/static/a%00b", 404, None, None),
        ("/static/" + "x" * 5000, 404, None, None),
    ],
)
def test_only_files_of_the_folder_are_served(
    root: Path, url: str, status: int, content_type: str | None, body: bytes | None
) -> None:
    """A URL means the file with this path in the folder; other files, folders and hidden files are not there."""
    response = get(folder_rule(root), url)

    assert response.status_int == status
    if status == 200:
        assert (response.content_type, response.body) == (content_type, body)
    else:
        assert b"key" not in response.body


@pytest.mark.parametrize(
    ("pattern", "template", "upload", "url", "status"),
    [
        (r"/(.*\.(css|png))", r"static/\1", r"static/.*\.(css|png)", "/style.css", 200),
        (r"/(.*\.(css|png))", r"static/\1", r"static/.*\.(css|png)", "/sub/photo%201.png", 200),
        (r"/(.*\.(css|png))", r"static/\1", r"static/.*\.png", "/style.css", 404),
        (r"/(?P<name>\w+)/(\w+)", r"static/\2.\g<name>", r"static/.*", "/css/style", 200),
        ("/", "static/style.css", "static/style.css", "/", 200),
        ("/", "static/style.css", "style.css", "/", 404),
        (r"/(.*)", r"static/\1", r".*", "/../other.txt", 404),
        (r"/(.*)", r"\1", r".*", "/other.txt", 200),
    ],
)
def test_groups_of_the_url_are_put_into_the_path(
    root: Path, pattern: str, template: str, upload: str, url: str, status: int
) -> None:
    """``static_files`` names the file by the groups of ``url``, and ``upload`` says which files are there."""
    rule = HandlerRule(pattern=pattern, root=str(root.parent), file=template, upload=upload)

    assert get(rule, url).status_int == status


def test_conditional_requests_and_ranges(root: Path) -> None:
    """A file that the browser has is not sent again, and a part of it is sent alone."""
    url, rule = "/static/sub/photo%201.png", folder_rule(root)
    whole = get(rule, url)

    assert whole.headers["Accept-Ranges"] == "bytes"
    assert get(rule, url, If_None_Match=whole.headers["ETag"]).status_int == 304
    assert get(rule, url, If_Modified_Since=whole.headers["Last-Modified"]).status_int == 304
    assert get(rule, url, If_None_Match='"other"').status_int == 200
    part = get(rule, url, Range="bytes=1000-70999")
    assert (part.status_int, part.body) == (206, CONTENT[1000:71000])
    assert part.headers["Content-Range"] == f"bytes 1000-70999/{len(CONTENT)}"
    assert get(rule, url, Range="bytes=-10").body == CONTENT[-10:]
    assert get(rule, url, Range=f"bytes={len(CONTENT)}-").status_int == 416
    head = get(rule, url, "HEAD")
    assert (head.status_int, head.body, head.content_length) == (200, b"", len(CONTENT))
    (root / "sub" / "photo 1.png").write_bytes(b"new")
    assert get(rule, url, If_None_Match=whole.headers["ETag"]).body == b"new"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(root: Path, method: str) -> None:
    """A static file takes GET and HEAD."""
    response = get(folder_rule(root), "/static/style.css", method)

    assert (response.status_int, response.headers["Allow"]) == (405, "GET, HEAD")


def test_headers_of_the_handler(root: Path) -> None:
    """The handler sets the type, the expiration and any header."""
    plain = get(folder_rule(root), "/static/style.css")
    assert plain.headers["Cache-Control"] == "no-cache"
    assert plain.headers["Content-Type"] == "text/css"

    cached = get(folder_rule(root, expiration_seconds=90_000), "/static/style.css")
    assert cached.headers["Cache-Control"] == "public, max-age=90000"
    assert "Expires" in cached.headers

    rule = folder_rule(
        root,
        mime_type="text/html; charset=latin-1",
        http_headers={"X-Frame-Options": "DENY", "Cache-Control": "private", "Access-Control-Allow-Origin": "*"},
        expiration_seconds=60,
    )
    own = get(rule, "/static/style.css")
    assert own.headers["Content-Type"] == "text/html; charset=latin-1"
    assert own.headers["Cache-Control"] == "private"
    assert own.headers["X-Frame-Options"] == "DENY"
    assert get(folder_rule(root), "/static/data.tar.gz").headers["Content-Encoding"] == "gzip"

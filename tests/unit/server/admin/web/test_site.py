"""The protection that every page has, and what becomes of requests that make no sense."""

from __future__ import annotations

import re
import sqlite3
from typing import Any

import pytest

from tests.support.visiting import FORM_TOKEN, Visitor


def test_every_page_has_a_policy_with_its_own_nonce(visitor: Visitor) -> None:
    """Only the script and the style with the page's nonce are used; nothing comes from another host."""
    pages = [visitor.get("/"), visitor.get("/"), visitor.ask("GET", "/nothing")]
    nonces = set()
    for page in pages:
        policy = page.header("Content-Security-Policy")
        (nonce,) = set(re.findall(r"'nonce-([\w-]+)'", policy))
        nonces.add(nonce)
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert set(re.findall(r'nonce="([^"]+)"', page.html)) == {nonce}
        assert not re.search(r"<[^>]+\s(style|on\w+)=", page.html)
        assert not re.search(r"<(script|style)(?![^>]* src=)[^>]*>", page.html)
        assert not re.search(r'(src|href|action)="(https?:)?//', page.html)
        assert page.header("Cache-Control") == "no-store"
    assert len(nonces) == len(pages)


def test_static_files_are_kept_by_browsers(visitor: Visitor) -> None:
    """A script or a style is answered at the address that pages name, and nowhere else."""
    html = visitor.get("/").html
    for name, kind in [("page.css", "text/css"), ("page.js", "text/javascript"), ("icon.svg", "image/svg+xml")]:
        (path,) = set(re.findall(rf'"(/static/[0-9a-f]+/{re.escape(name)})"', html))
        page = visitor.get(path)
        assert page.header("Content-Type").startswith(kind)
        assert "immutable" in page.header("Cache-Control")
        assert visitor.ask("GET", path.replace(name, "../" + name)).status == 404
    assert visitor.ask("GET", "/static/0123456789abcdef/page.css").status == 404


def test_the_script_is_small(visitor: Visitor) -> None:
    """The only script has less than 20 KB."""
    (path,) = set(re.findall(r'"(/static/[0-9a-f]+/page.js)"', visitor.get("/").html))

    assert len(visitor.get(path).body) < 20_000


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"form_token": ""},
        {"form_token": FORM_TOKEN[:-1]},
        {"form_token": "\ud800"},
        {"token": FORM_TOKEN},
        b"form_token=" + b"x" * 2_000_000,
        b"&".join(b"a=b" for _ in range(6000)) + b"&form_token=" + FORM_TOKEN.encode(),
    ],
)
def test_a_form_without_the_token_changes_nothing(visitor: Visitor, fields: Any) -> None:
    """A form that no page of this server has made is refused."""
    page = visitor.ask("POST", "/queues/default/pause", fields)

    assert page.status in (400, 403, 413)
    assert visitor.store.operations.paused() == frozenset()
    assert visitor.woken == 0


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/json", ""])
def test_only_the_type_of_our_forms_is_read(visitor: Visitor, kind: str) -> None:
    """A body of another type has no fields, so it has no token either."""
    page = visitor.ask("POST", "/queues/default/pause", {"form_token": FORM_TOKEN}, CONTENT_TYPE=kind)

    assert page.status == 403
    assert visitor.store.operations.paused() == frozenset()


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_changes_take_post(visitor: Visitor, method: str) -> None:
    """What changes something can't be reached by a link, an image or any other method."""
    assert visitor.ask(method, f"/queues/default/pause?form_token={FORM_TOKEN}").status == 405
    assert visitor.store.operations.paused() == frozenset()


def test_a_mistake_of_ours_is_a_sentence(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a page can't be made, the person gets a sentence and no traceback."""

    def fail() -> None:
        raise ZeroDivisionError("the secret of the traceback")

    monkeypatch.setattr(visitor.operations, "list_queues", fail)
    page = visitor.ask("GET", "/")

    assert page.status == 500
    assert "mistake in the server" in page.text
    assert "ZeroDivisionError" not in page.html
    assert "the secret" not in page.html


def test_a_full_store_is_a_sentence(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the store can't be written, the page says so."""

    def fail(_queue: str) -> bool:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(visitor.store.operations, "pause", fail)
    page = visitor.press(visitor.get("/"), "Pause default")

    assert page.status == 500
    assert "The task store failed: database or disk is full." in page.text


@pytest.mark.parametrize(
    "path",
    ["/nothing", "//", "/queues", "/%00", "/../../etc/passwd", "/<script>alert(1)</script>", "/\u202e", "/live/x"],
)
def test_an_unknown_address_is_a_page(visitor: Visitor, path: str) -> None:
    """An unknown address is a 404 page with the menu; what it names is text."""
    page = visitor.ask("GET", path)

    assert page.status == 404
    assert "<script>alert" not in page.html
    assert "\u202e" not in page.html
    assert 'href="/"' in page.html


def test_head_is_answered_without_a_body(visitor: Visitor) -> None:
    """HEAD has the headers of GET."""
    page = visitor.ask("HEAD", "/")

    assert (page.status, page.body) == (200, b"")
    assert int(page.header("Content-Length")) > 1000

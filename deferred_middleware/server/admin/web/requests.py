"""A request for a page, and the answers to it."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from deferred_middleware.server.admin.change_log import Actor
from deferred_middleware.server.admin.operation_errors import OperationError, bad

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

MAX_FORM_BYTES = 1024 * 1024
"""The size of a form, such as one with the text of a queue.yaml."""

FORM_TOKEN = "form_token"
"""The field of every form that shows that a page of this server has made it."""

THEMES = ("auto", "light", "dark")
THEME_COOKIE = "deferred_theme"

_FORM_TYPE = "application/x-www-form-urlencoded"
_MAX_FIELDS = 5000


class PageRequest:
    """A request. ``form_token`` is what forms must have; ``nonce`` is that of the page's scripts and styles."""

    def __init__(self, environ: WSGIEnvironment, *, form_token: str, nonce: str) -> None:
        self.environ = environ
        self.method: str = environ["REQUEST_METHOD"]
        self.path: str = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
        self.form_token = form_token
        self.nonce = nonce

    @cached_property
    def query(self) -> Mapping[str, list[str]]:
        """The parameters in the URL. Raises :class:`OperationError` if there are too many."""
        return _fields(self.environ.get("QUERY_STRING", ""))

    @cached_property
    def form(self) -> Mapping[str, list[str]]:
        """The fields of a form. Raises :class:`OperationError` unless it is one that a page of this server made."""
        length = int(self.environ.get("CONTENT_LENGTH") or 0)
        if length > MAX_FORM_BYTES:
            raise OperationError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"A form may have at most {MAX_FORM_BYTES:,} bytes."
            )
        kind = self.environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        data = self.environ["wsgi.input"].read(length)
        fields = _fields(data.decode("utf-8", "replace")) if kind == _FORM_TYPE else {}
        shown = fields.get(FORM_TOKEN, [""])[-1]
        if not hmac.compare_digest(shown.encode("utf-8", "replace"), self.form_token.encode()):
            raise OperationError(
                HTTPStatus.FORBIDDEN,
                "stale-form",
                "Nothing was changed: this form is not from a page of this run of the server. If the server was "
                "started again meanwhile, go back, load the page again, and repeat it.",
            )
        return fields

    def given(self, name: str, default: str = "") -> str:
        """Return a parameter of the URL, without surrounding blanks."""
        values = self.query.get(name)
        return values[-1].strip() if values else default

    def field(self, name: str, default: str = "") -> str:
        """Return a field of the form."""
        values = self.form.get(name)
        return values[-1] if values else default

    @property
    def actor(self) -> Actor:
        """Who makes the request, for the log of changes."""
        return Actor(via="page", who=self.environ.get("REMOTE_ADDR", "?"))

    @property
    def theme(self) -> str:
        """The colours that the person has chosen: ``light``, ``dark``, or ``auto`` for those of the system."""
        chosen = self.cookie(THEME_COOKIE)
        return chosen if chosen in THEMES else "auto"

    def cookie(self, name: str) -> str:
        """Return a cookie; empty if there is none."""
        given: str = self.environ.get("HTTP_COOKIE", "")
        for pair in given.split(";"):
            key, _, value = pair.strip().partition("=")
            if key == name:
                return value
        return ""

    def url_with(self, **changes: str | int | None) -> str:
        """Return the URL of this page with other parameters; None removes one."""
        kept = {name: values[-1] for name, values in self.query.items()}
        for name, value in changes.items():
            if value is None or value == "":
                kept.pop(name, None)
            else:
                kept[name] = str(value)
        return f"?{urlencode(kept, errors='replace')}" if kept else self.path

    def back(self, default: str) -> str:
        """Return the page of this server that a form names as the one to go back to."""
        wanted = self.field("back")
        # Two slashes would begin the name of another host, and browsers take a backslash for a slash.
        is_own = wanted.startswith("/") and not wanted.startswith("//") and "\\" not in wanted
        return wanted if is_own and wanted.isascii() and wanted.isprintable() else default


def _fields(text: str) -> Mapping[str, list[str]]:
    try:
        return parse_qs(text, keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="replace")
    except ValueError:
        raise bad(f"There are more than {_MAX_FIELDS} fields.") from None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A page: a template and the values for it."""

    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    status: HTTPStatus = HTTPStatus.OK


@dataclass(frozen=True, kw_only=True)
class Redirected:
    """What a form leads to: a page of this server, with a sentence about what was done."""

    to: str
    notice: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sent:
    """An answer that no template makes. ``stream`` is sent as it comes."""

    content_type: str
    body: bytes = b""
    stream: Callable[[], Iterable[bytes]] | None = None
    headers: tuple[tuple[str, str], ...] = ()


Answer = Shown | Redirected | Sent

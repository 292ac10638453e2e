"""Templates. Jinja escapes every value, and everything that a browser would not show is made visible before that."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined

from deferred_middleware.server.admin.web import words

STATIC_PREFIX = "/static/"
_PAGES = "deferred_middleware.server.admin.pages"


class StaticFile:
    """A style, script or picture. Its address changes with its content, so browsers may keep it for ever."""

    def __init__(self, name: str, content: bytes) -> None:
        self.content = content
        self.content_type: str = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if self.content_type.startswith("text/"):
            self.content_type += "; charset=utf-8"
        self.path: str = f"{STATIC_PREFIX}{hashlib.sha256(content).hexdigest()[:16]}/{name}"


class Renderer:
    """The templates and static files of the package ``pages``."""

    def __init__(self) -> None:
        self.static: dict[str, StaticFile] = {file.path: file for file in map(_static_file, _files("static"))}
        by_name = {file.path.rpartition("/")[2]: file.path for file in self.static.values()}
        self._environment = Environment(
            # Read once: the package may be in a zip file, or replaced while the server runs.
            loader=DictLoader({name: text.decode() for name, text in _files("templates")}),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            finalize=words.visible,
        )
        self._environment.filters.update(
            number=words.number,
            plural=words.plural,
            duration=words.duration,
            usec=lambda usec: words.duration(None if usec is None else usec / 1e6),
            moment=words.moment,
            retries=words.retries,
            age=words.age,
            clock=words.clock,
            short=words.shortened,
            phase=words.phase,
            address=words.address,
        )
        self._environment.tests["chosen"] = words.is_chosen
        self._environment.globals["static"] = by_name.__getitem__

    def render(self, template: str, values: Mapping[str, Any]) -> bytes:
        """Return a page."""
        return self._environment.get_template(template).render(values).encode("utf-8", "backslashreplace")


def _files(folder: str) -> list[tuple[str, bytes]]:
    found = resources.files(_PAGES).joinpath(folder).iterdir()
    return sorted((entry.name, entry.read_bytes()) for entry in found if entry.is_file())


def _static_file(named: tuple[str, bytes]) -> StaticFile:
    return StaticFile(*named)

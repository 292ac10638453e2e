"""A traceback for people: the frames of the app's own code stand out, and lead to an editor.

lines_of(excerpt)       # Text("Traceback (most recent call last):"), FrameLines(frame, ("    raise …", "    ^^^")), …
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.statistics.traceback_text import Frame, frames_in

EDITORS: Mapping[str, str] = {
    "vscode": "vscode://file{path}:{line}",
    "vscodium": "vscodium://file{path}:{line}",
    "cursor": "cursor://file{path}:{line}",
    "zed": "zed://file{path}:{line}",
    "pycharm": "pycharm://open?file={path}&line={line}",
    "sublime": "subl://open?url=file://{path}&line={line}",
    "textmate": "txmt://open?url=file://{path}&line={line}",
    "emacs": "emacs://open?url=file://{path}&line={line}",
    "none": "",
}
"""The addresses by which editors open a file at a line."""

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
_UNSAFE_SCHEMES = ("javascript", "data", "vbscript", "file", "blob")


@dataclass(frozen=True, kw_only=True)
class FrameLines:
    """A frame, and the lines of code below it."""

    frame: Frame
    lines: tuple[str, ...]


def lines_of(text: str) -> list[str | FrameLines]:
    """Return a text as lines, with each frame of a traceback together with its lines of code."""
    found: list[str | FrameLines] = []
    for line in text.splitlines():
        frames = frames_in(line)
        last = found[-1] if found else None
        if frames:
            found.append(FrameLines(frame=frames[0], lines=()))
        elif isinstance(last, FrameLines) and line.startswith("    "):
            found[-1] = FrameLines(frame=last.frame, lines=(*last.lines, line[4:]))
        else:
            found.append(line)
    return found


def editor_template(option: str) -> str:
    """Return the address template of an editor's name, or the option itself. Raises :class:`ServerError`."""
    if option in EDITORS:
        return EDITORS[option]
    scheme = option.partition(":")[0].lower()
    if not _SCHEME.match(option) or "{path}" not in option or scheme in _UNSAFE_SCHEMES:
        raise ServerError(
            f"--editor {option}: give one of {', '.join(EDITORS)}, or an address with {{path}} and {{line}}, "
            "such as vscode://file{path}:{line}."
        )
    return option


def editor_link(template: str, file: str, line: int) -> str:
    """Return the address that opens a file at a line; empty without an editor, and for what is no file."""
    if not template or not file.startswith("/"):
        return ""
    return template.replace("{path}", quote(file, errors="replace")).replace("{line}", str(line))

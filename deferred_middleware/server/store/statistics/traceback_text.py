"""Where and why an attempt failed, read from the text of its response.

    site = failure_site(status=500, reason=None, response=traceback, url="/_cb/deferred/mail/send")
    site.exception, site.file, site.line, site.function     # "OSError", "/app/mail.py", 12, "send"

A task that fails in a service of the local server is answered with its traceback. The text is only read: whatever is in
it, it becomes text in a page.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from deferred_middleware.wire import protocol

_MAX_CHARACTERS = 300
_HEADER = "Traceback (most recent call last):"
# Between the tracebacks of an exception and of its cause. Only then another traceback follows; a text that looks like
# one may also be a part of an exception's message.
_CHAINED = re.compile(
    r"^\n?(?:During handling of the above exception, another exception occurred|"
    r"The above exception was the direct cause of the following exception):\n",
    re.MULTILINE,
)
# The exceptions of a group are printed in a tree, of which the group itself is the first branch.
_SUBGROUP = re.compile(r"^ +\+-\+-+", re.MULTILINE)
_FRAME = re.compile(r'^ *(?:\| *)?File "(?P<file>[^"\n]*)", line (?P<line>\d+)(?:, in (?P<function>.*))?$')
_TREE = re.compile(r"^ *[|+] ")
_EXCEPTION = re.compile(r"^(?P<type>[^\W\d][\w.<>]*)(?:: (?P<text>.*))?$")
_LIBRARIES = re.compile(r"/lib(?:64)?/python3[^/]*/|/(?:site|dist)-packages/|/python3\d*\.zip/|^<frozen |^<string>$")
_OUR_PACKAGE = f"{Path(__file__).parents[3]}/"
_DIGITS = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame of a traceback. ``source`` is the line of code, empty if it is unknown."""

    file: str
    line: int
    function: str
    source: str = ""

    @property
    def is_users(self) -> bool:
        """Whether the frame is in the app's own code, and not in a library."""
        return not (_LIBRARIES.search(self.file) or self.file.startswith(_OUR_PACKAGE))


@dataclass(frozen=True, kw_only=True)
class FailureSite:
    """Why an attempt failed, and where: ``exception`` is the exception's type, or says what happened instead of one.

    ``message`` is the first line of the exception's message. If there is no traceback, ``file`` is empty, and
    ``function`` is the task's function or URL.
    """

    exception: str
    message: str = ""
    file: str = ""
    line: int = 0
    function: str = ""
    source: str = ""

    @property
    def key(self) -> str:
        """A text that equal failures share, also after lines were inserted above them."""
        place = self.source or self.line
        parts = "\0".join((self.exception, self.file, self.function, str(place)))
        return hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def frames_in(text: str) -> list[Frame]:
    """Return the frames of all tracebacks in a text, in its order."""
    frames: list[Frame] = []
    lines = text.splitlines()
    for index, line in enumerate(lines):
        found = _FRAME.match(line)
        if found is not None:
            following = _TREE.sub("", lines[index + 1]).strip() if index + 1 < len(lines) else ""
            is_source = following and not _FRAME.match(lines[index + 1]) and lines[index + 1].startswith(" ")
            frames.append(
                Frame(
                    file=found["file"],
                    line=int(found["line"][:9]),
                    function=found["function"] or "",
                    source=following if is_source else "",
                )
            )
    return frames


def failure_site(*, status: int | None, reason: str | None, response: bytes, url: str) -> FailureSite:
    """Return why an attempt of the task with this ``url`` failed. ``response`` is the beginning of the response's body.

    ``status`` is None if there was no response; ``reason`` then describes what happened.
    """
    read = _read_traceback(response)
    if read is not None and read.file:
        return read
    function = function_in(url)
    if read is not None:
        return FailureSite(exception=read.exception, message=read.message, function=function)
    if status is None:
        # Numbers in the description, such as of a process, would make each failure another one.
        return FailureSite(
            exception=_DIGITS.sub("…", _short(reason or "no response")), message=_short(reason or ""), function=function
        )
    if 200 <= status < 300:
        return FailureSite(exception="permanent failure", message=_short(reason or ""), function=function)
    own = f"status {status}"
    return FailureSite(exception=own, message=_short(reason) if reason and reason != own else "", function=function)


@functools.lru_cache(maxsize=2048)
def function_in(url: str) -> str:
    """Return the function in a task's URL, as ``module/function``.

    For one of the app's own URLs, this is the path, with ``…`` in place of numbers.
    """
    path = url.partition("?")[0]
    if path.startswith(protocol.URL_PREFIX + "/"):
        return _short(unquote(path[len(protocol.URL_PREFIX) + 1 :]))
    return _short(_DIGITS.sub("…", path))


@functools.lru_cache(maxsize=256)
def _read_traceback(response: bytes) -> FailureSite | None:
    """Return the last exception of a traceback and the innermost frame of the user's code; None if there is none."""
    text = response.decode("utf-8", "replace")
    if _HEADER not in text:
        return None
    last = _CHAINED.split(text)[-1]
    is_group = "Exception Group Traceback" in last
    if is_group:
        last = _SUBGROUP.split(last)[0]
    # If the beginning was left out because the text is long, the frames stand there without their header.
    body = last.partition(_HEADER)[2] or last
    frames_text, exception, message = _split(body)
    frames = frames_in(frames_text)
    place = next((frame for frame in reversed(frames) if frame.is_users), frames[-1] if frames else None)
    found = FailureSite(exception=_short(exception), message=_short(message))
    if place is None:
        return found
    return FailureSite(
        exception=found.exception,
        message=found.message,
        file=_short(place.file),
        line=place.line,
        function=_short(place.function),
        source=_short(place.source),
    )


def _split(body: str) -> tuple[str, str, str]:
    """Return the frames, the exception's type and the first line of its message."""
    lines = body.splitlines()
    for index, line in enumerate(lines):
        # The frames are indented, and the exception is not.
        bare = _TREE.sub("", line)
        found = _EXCEPTION.match(bare)
        if found is not None:
            return "\n".join(lines[:index]), found["type"], found["text"] or ""
    return body, "an exception", ""


def _short(text: str) -> str:
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 1]}…"

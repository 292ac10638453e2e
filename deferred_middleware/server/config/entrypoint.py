"""The app that the command in ``entrypoint:`` of an app.yaml serves.

On App Engine, ``entrypoint`` is the command that starts a web server, such as ``gunicorn -b :$PORT main:app``. The
local server serves the app itself, so it only takes the app and the directory from the command:

    parse_entrypoint("gunicorn --chdir src -b :$PORT main:app")     # EntrypointApp(app="main:app", directory="src")

gunicorn's command line is read as gunicorn reads it: the app is the first word that is neither an option nor an
option's value. In the command of another server, the app is the last word that has the form ``MODULE:CALLABLE``.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

_APP = re.compile(r"(?!(?:egg|fd|file|inet|python|tcp|unix):)[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_GUNICORN_APP = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\(.*\)", re.DOTALL)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# The callable that gunicorn serves if only a module is named.
_GUNICORN_DEFAULT = "application"
# gunicorn's options that take no value (https://docs.gunicorn.org/en/stable/settings.html). All others take one.
_GUNICORN_FLAGS = frozenset(
    [
        "--help",
        "--version",
        "--reload",
        "--spew",
        "--check-config",
        "--print-config",
        "--preload",
        "--no-sendfile",
        "--reuse-port",
        "--daemon",
        "--initgroups",
        "--disable-redirect-access-to-syslog",
        "--capture-output",
        "--log-syslog",
        "--enable-stdio-inheritance",
        "--enable-backlog-metric",
        "--suppress-ragged-eofs",
        "--do-handshake-on-connect",
        "--permit-obsolete-folding",
        "--strip-header-spaces",
        "--permit-unconventional-http-method",
        "--permit-unconventional-http-version",
        "--casefold-http-method",
        "--no-control-socket",
    ]
)
_GUNICORN_SHORT_FLAGS = "hvDR"
# This option takes a value or none.
_PROXY_PROTOCOL, _PROXY_PROTOCOLS = "--proxy-protocol", ("auto", "off", "v1", "v2")
# A word that ends the command, or redirects its output.
_SHELL = re.compile(r"[;&|]+|\d*[<>].*")


@dataclass(frozen=True, kw_only=True)
class EntrypointApp:
    """What is served: ``app`` is ``module:callable``, or ``module:factory(…)``.

    ``directory`` is the command's working directory, relative to the file's.
    """

    app: str
    directory: str | None = None


def parse_entrypoint(entrypoint: str) -> EntrypointApp:
    """Return the app that a command serves. Raises :class:`ValueError`, with the reason, if that is not known."""
    try:
        words = shlex.split(entrypoint)
    except ValueError as error:
        raise ValueError(f"it is not a command ({error})") from error
    begins = [number for number, word in enumerate(words) if os.path.basename(word) == "gunicorn"]
    if begins:
        commands = [_GunicornCommand(words[begin + 1 :]) for begin in begins]
        command = next((one for one in commands if one.app is not None), commands[0])
        app, directory = command.app, command.directory
    else:
        # An option and its value may be one word: --module=main:app.
        values = [word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in words]
        app, directory = next((value for value in reversed(values) if _is_app(value)), None), None
    if app is None:
        raise ValueError("it names no WSGI app as MODULE:CALLABLE")
    return EntrypointApp(app=app, directory=directory)


def _is_app(word: str) -> bool:
    return _APP.fullmatch(word) is not None or _FACTORY.fullmatch(word) is not None


class _GunicornCommand:
    """What gunicorn takes from ``words``, which follow its name: ``app`` and ``directory``, each None if not given."""

    def __init__(self, words: list[str]) -> None:
        self.app: str | None = None
        self.directory: str | None = None
        rest = iter(_until_the_shell(words))
        only_positional = False
        for word in rest:
            if word == "--" and not only_positional:
                only_positional = True
            elif word.startswith("--") and not only_positional:
                self._read_option(word, rest)
            elif word.startswith("-") and word != "-" and not only_positional:
                _skip_short_options(word, rest)
            elif self.app is None:
                self.app = _positional(word)

    def _read_option(self, word: str, rest: Iterator[str]) -> None:
        name, equals, value = word.partition("=")
        if name == _PROXY_PROTOCOL and not equals:
            following = next(rest, "")
            if following not in _PROXY_PROTOCOLS and self.app is None:
                self.app = _positional(following)
            return
        if not equals and name not in _GUNICORN_FLAGS:
            value = next(rest, "")
        if name == "--chdir":
            self.directory = value


def _until_the_shell(words: list[str]) -> Iterator[str]:
    """Go through the words of a command up to a word that only the shell reads, such as ``&&``."""
    for word in words:
        if _SHELL.fullmatch(word):
            return
        yield word


def _skip_short_options(word: str, rest: Iterator[str]) -> None:
    """Skip the value of ``-w``; in ``-w2`` and ``-Dw2`` it is in the word itself."""
    letters = word[1:].lstrip(_GUNICORN_SHORT_FLAGS)
    if len(letters) == 1:
        next(rest, "")


def _positional(word: str) -> str | None:
    """Return the app that a word means; None for one that can't be an app, such as a variable of the shell."""
    if _GUNICORN_APP.fullmatch(word) or _FACTORY.fullmatch(word):
        return word
    return f"{word}:{_GUNICORN_DEFAULT}" if _MODULE.fullmatch(word) else None

"""Which WSGI app the ``entrypoint`` of an ``app.yaml`` serves.

On App Engine it is the command that starts a web server, such as ``gunicorn -b :$PORT main:app``. Here the app is
served by the local server itself, so that all that matters of the command is the app it names, and the folder it is
found in:

    wsgi_app_of("gunicorn --chdir src -b :$PORT main:app")    # EntrypointApp(app="main:app", directory="src")
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

_APP = re.compile(r"(?!egg:)[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\(.*\)")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# What gunicorn takes when only a module is named.
_GUNICORN_DEFAULT = "application"


@dataclass(frozen=True, kw_only=True)
class EntrypointApp:
    """``app`` is ``module:callable``; ``directory`` is where the command changes to, relative to the file's."""

    app: str
    directory: str | None = None


def wsgi_app_of(entrypoint: str) -> EntrypointApp:
    """Return the app that a command serves. Raises :class:`ValueError`, with a reason, when it can't be told."""
    try:
        words = shlex.split(entrypoint)
    except ValueError as error:
        raise ValueError(f"it is no command ({error})") from error
    # An option may have its value in the same word: --module=main:app.
    values = [word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in words]
    apps = [value for value in values if _APP.fullmatch(value)]
    if any(_FACTORY.fullmatch(value) for value in values):
        raise ValueError("it calls a factory; call it in the module (app = …) and name the app that it returns")
    is_gunicorn = any(os.path.basename(word) == "gunicorn" for word in words)
    if not apps and is_gunicorn:
        apps = [f"{module}:{_GUNICORN_DEFAULT}" for module in _lone_modules(words)]
    if not apps:
        raise ValueError("it names no WSGI app as MODULE:CALLABLE")
    return EntrypointApp(app=apps[-1], directory=_value_of("--chdir", words) if is_gunicorn else None)


def _lone_modules(words: list[str]) -> list[str]:
    """Return gunicorn's last words that can be modules, and not the value of an option."""
    begin = next(number for number, word in enumerate(words) if os.path.basename(word) == "gunicorn")
    found = [
        word
        for before, word in zip(words[begin:], words[begin + 1 :], strict=False)
        if _MODULE.fullmatch(word) and not before.startswith("-")
    ]
    return found if len(found) == 1 else []


def _value_of(option: str, words: list[str]) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None

"""Which WSGI app the ``entrypoint`` of an ``app.yaml`` serves.

On App Engine it is the command that starts a web server, such as ``gunicorn -b :$PORT main:app``. Here the app is
served by the local server itself, so that all that matters of the command is the app it names, and the folder it is
found in:

    wsgi_app_of("gunicorn --chdir src -b :$PORT main:app")    # EntrypointApp(app="main:app", directory="src")

``app.yaml``: what of it says how a service is run, read by the SDK's own parser.

    app_yaml = read_app_yaml(Path("background.yaml"))
    app_yaml.service, app_yaml.app          # "background", "main:app"
    app_yaml.notes                          # what of it isn't used here, each a sentence

Its fields are described at https://cloud.google.com/appengine/docs/standard/reference/app-yaml?tab=python. Used are
``service``, ``entrypoint``, ``env_variables`` (also those of ``includes``) and ``runtime``. A field that isn't used may
be newer than the SDK, or hold what its parser doesn't take; it is left out then. What else can't be is an
:class:`AppYamlError` that names the file and the line.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.appengine.api import appinfo, appinfo_errors, validation, yaml_errors

from deferred_middleware.errors import nearest
from deferred_middleware.server.config.yaml_files import (
    YamlFileError,
    compose,
    is_mapping,
    line_of,
    problem_of,
    read_text,
    value_of,
)

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


DEFAULT_APP = "main:app"
"""What App Engine serves when there is no entrypoint."""

_USED = ("service", "module", "runtime", "env", "entrypoint", "env_variables", "includes", "handlers")
# What they ask for is there, or means nothing on one machine.
_GRANTED = ("app_engine_apis", "app_engine_bundled_services", "threadsafe", "api_version", "vm", "skip_files")
_OTHER_FILES = {
    "queue": "this is a queue.yaml; give it with --queue-yaml",
    "cron": "this is a cron.yaml, which isn't used here",
    "dispatch": "this is a dispatch.yaml, which isn't used here",
    "indexes": "this is an index.yaml; the local datastore needs none",
}
_TAKES = {
    "service": "up to 63 lower-case letters, digits and hyphens, and neither begins nor ends with a hyphen",
    "runtime": "a name such as python312",
    "entrypoint": "a command, such as gunicorn -b :$PORT main:app",
    "env_variables": "NAME: value, one on each line under it",
    "includes": "a list of files",
    "handlers": "a list of '- url: …'",
}
_NULL_TAG = "tag:yaml.org,2002:null"


class AppYamlError(YamlFileError):
    """``app.yaml`` can't be used."""


@dataclass(frozen=True, kw_only=True)
class AppYaml:
    """One service, as its file has it.

    ``app`` is ``module:callable``, found in ``directory``; ``notes`` are sentences for the person at the terminal.
    """

    path: Path
    service: str
    app: str
    directory: Path
    env_variables: Mapping[str, str]
    notes: tuple[str, ...]


def read_app_yaml(path: Path) -> AppYaml:
    """Return what the file says. Raises :class:`AppYamlError` when it can't be read or is wrong."""
    parsed = _Parsed(path, appinfo.LoadSingleAppInfo)
    info, root = parsed.info, parsed.root
    parsed.check_env_variables()
    _merge_includes(info, parsed)
    notes = _runtime_notes(info, parsed)
    entry = _entry(info, parsed)
    notes += [*_handler_notes(info), *_unused_notes(root, parsed.left_out)]
    return AppYaml(
        path=path,
        service=str(info.service or info.module or "default"),
        app=entry.app,
        directory=_directory(path, entry, parsed),
        env_variables={name: str(value) for name, value in (info.env_variables or {}).items()},
        notes=tuple(notes),
    )


class _Parsed:
    """A file that the SDK has parsed by ``load``: the object it made, ``info``, and the nodes it made that of."""

    def __init__(self, path: Path, load: Callable[[str], Any]) -> None:
        self.path = str(path)
        self._text = read_text(path, AppYamlError)
        self.root = compose(self._text, self.path, AppYamlError)
        if self.root is None:
            raise AppYamlError(self.path, None, "it is empty; it has to say 'runtime: python3…' at least.")
        if not is_mapping(self.root):
            raise AppYamlError(self.path, line_of(self.root), "it takes fields, such as 'runtime: python312'.")
        for name, problem in _OTHER_FILES.items():
            if (line := self.line(name)) is not None:
                raise AppYamlError(self.path, line, f"{problem}.")
        self.left_out: list[str] = []
        self.info = self._load(load)

    def line(self, name: str) -> int | None:
        """Return the line of a field, None when it isn't there."""
        return next((line_of(key) for key, _value in self.root.value if key.value == name), None)

    def check_env_variables(self) -> None:
        """Refuse what the SDK would make an odd text of."""
        node = value_of(self.root, "env_variables")
        for key, value in node.value if is_mapping(node) else ():
            if isinstance(value.value, list) or value.tag == _NULL_TAG:
                raise AppYamlError(
                    self.path, line_of(key), f"the environment variable {key.value} takes a text; '' is an empty one."
                )

    def _load(self, load: Callable[[str], Any]) -> Any:
        while True:
            try:
                return load(self._text)
            except yaml_errors.EventError as error:
                self._leave_out(error)
            except (yaml_errors.Error, appinfo_errors.Error, validation.ValidationError, ValueError) as error:
                problem = "".join(str(error).splitlines()[:1]) or type(error).__name__
                raise AppYamlError(self.path, None, f"{problem.rstrip('.')}.") from error

    def _leave_out(self, error: yaml_errors.EventError) -> None:
        """Blank the field that the parser stumbles on, so that it can be tried again; raise if the field matters."""
        problem = problem_of(error, _TAKES)
        # What ends a block is at the beginning of the next one.
        index = len(self._text[: error.event.end_mark.index].rstrip())
        line = self._text.count("\n", 0, index) + 1
        name, begin, end = self._field_at(index)
        known = sorted(appinfo.AppInfoExternal.ATTRIBUTES)
        meant = nearest(name, known, similarity=0.8) if name not in known else None
        if meant:
            problem = f"there is no field {name}; did you mean {meant}?"
            raise AppYamlError(self.path, self.line(name), problem) from error
        if isinstance(error.cause, AssertionError) and name in _TAKES:
            problem = f"{name} takes {_TAKES[name]}"
        if name in _USED or not name or self.root.flow_style:
            raise AppYamlError(self.path, line, f"{problem}.") from error
        self.left_out.append(name)
        kept = "".join(character if character == "\n" else " " for character in self._text[begin:end])
        self._text = self._text[:begin] + kept + self._text[end:]

    def _field_at(self, index: int) -> tuple[str, int, int]:
        """Return the field that the text before ``index`` ends in, and from where to where it goes."""
        begins = [(key.value, key.start_mark.index) for key, _value in self.root.value]
        ends = [begin for _name, begin in begins[1:]] + [len(self._text)]
        for (name, begin), end in zip(begins, ends, strict=True):
            if begin < index <= end:
                return str(name), begin, end
        return "", 0, 0


def _merge_includes(info: Any, parsed: _Parsed) -> None:
    """Add to ``info`` what is in the files that it includes, and in those that they include."""
    waiting = [(parsed, include) for include in info.includes or ()]
    seen: set[Path] = set()
    while waiting:
        parent, include = waiting.pop(0)
        path = Path(parent.path).parent / str(include)
        if path.is_dir():
            path = path / "include.yaml"
        if not path.exists():
            raise AppYamlError(parent.path, parent.line("includes"), f"there is no {path} to include.")
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        included = _Parsed(path, appinfo.LoadAppInclude)
        included.check_env_variables()
        waiting += [(included, further) for further in included.info.includes or ()]
        appinfo.AppInclude.MergeAppYamlAppInclude(info, included.info)


def _entry(info: Any, parsed: _Parsed) -> EntrypointApp:
    if not info.entrypoint:
        return EntrypointApp(app=DEFAULT_APP)
    # The SDK writes it before the command.
    command = str(info.entrypoint).removeprefix("exec ")
    try:
        return wsgi_app_of(command)
    except ValueError as error:
        raise AppYamlError(
            parsed.path,
            parsed.line("entrypoint"),
            f"the entrypoint {command!r} can't be served here: {error}. Give one such as "
            "'gunicorn -b :$PORT main:app', or serve the app as MODULE:CALLABLE instead of this file.",
        ) from error


def _directory(path: Path, entry: EntrypointApp, parsed: _Parsed) -> Path:
    directory = path.absolute().parent / (entry.directory or "")
    if not directory.is_dir():
        raise AppYamlError(parsed.path, parsed.line("entrypoint"), f"there is no directory {directory} to change to.")
    return directory


def _runtime_notes(info: Any, parsed: _Parsed) -> list[str]:
    runtime = str(info.GetEffectiveRuntime())
    if runtime not in ("python", "custom") and not runtime.startswith("python3"):
        raise AppYamlError(
            parsed.path, parsed.line("runtime"), f"runtime is {runtime!r}; what is served here is Python 3."
        )
    here = f"python3{sys.version_info.minor}"
    if runtime.startswith("python3") and runtime != here:
        return [f"runtime is {runtime}; it is served by the Python that runs this, {here}."]
    return []


def _handler_notes(info: Any) -> list[str]:
    static = [handler.url for handler in info.handlers or () if handler.static_dir or handler.static_files]
    notes = []
    if static:
        notes.append(
            f"its static files aren't served here ({', '.join(static)}): requests for them reach the app, as all do."
        )
    guarded = [handler.url for handler in info.handlers or () if handler.login in ("required", "admin")]
    if guarded:
        notes.append(f"login isn't asked for here ({', '.join(guarded)}): everybody who reaches the app gets in.")
    return notes


def _unused_notes(root: Any, left_out: list[str]) -> list[str]:
    unused = dict.fromkeys(key.value for key, _value in root.value if key.value not in (*_USED, *_GRANTED))
    notes = [f"not used here: {', '.join(unused)}."] if unused else []
    odd = [name for name in unused if name in left_out and name in appinfo.AppInfoExternal.ATTRIBUTES]
    if odd:
        notes.append(f"the SDK doesn't understand what is in {', '.join(odd)}.")
    return notes

"""``app.yaml``: how a service runs, read by the SDK's own parser.

    app_yaml = read_app_yaml(Path("background.yaml"))
    app_yaml.service, app_yaml.app          # "background", "main:app"
    app_yaml.notes                          # sentences about what the local server does not use

Its fields are described at https://cloud.google.com/appengine/docs/standard/reference/app-yaml?tab=python. The local
server uses ``service``, ``entrypoint``, ``env_variables`` (also those of ``includes``), ``runtime``, ``handlers`` and
``default_expiration``. It leaves out any other field that the SDK's parser does not accept, because the field may be
newer than the SDK. For all other errors, :class:`AppYamlError` names the file and the line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.appengine.api import appinfo, appinfo_errors, validation, yaml_errors

from deferred_middleware.errors import nearest
from deferred_middleware.server.config.entrypoint import EntrypointApp, parse_entrypoint
from deferred_middleware.server.config.handlers import HandlerRule, problem_of_rule, rules_of
from deferred_middleware.server.config.yaml_files import (
    YamlFileError,
    compose,
    is_mapping,
    line_of,
    problem_of,
    read_text,
    value_of,
)

DEFAULT_APP = "main:app"
"""The app that App Engine serves without an entrypoint."""

_USED = (
    "service",
    "module",
    "runtime",
    "env",
    "entrypoint",
    "env_variables",
    "includes",
    "handlers",
    "default_expiration",
)
# The local server does what these fields ask for, or they have no meaning on one machine.
_GRANTED = ("app_engine_apis", "app_engine_bundled_services", "threadsafe", "api_version", "vm", "skip_files")
_OTHER_FILES = {
    "queue": "this is a queue.yaml; give it with --queue-yaml",
    "cron": "this is a cron.yaml, which the local server does not use",
    "dispatch": "this is a dispatch.yaml, which the local server does not use",
    "indexes": "this is an index.yaml; the local datastore needs none",
}
_TAKES = {
    "service": "up to 63 lower-case letters, digits and hyphens, without a hyphen at the beginning or end",
    "runtime": "a name such as python312",
    "entrypoint": "a command, such as gunicorn -b :$PORT main:app",
    "env_variables": "NAME: value, one on each line",
    "includes": "a list of files",
    "handlers": "a list of '- url: …'",
}
_NULL_TAG = "tag:yaml.org,2002:null"


class AppYamlError(YamlFileError):
    """``app.yaml`` can't be used."""


@dataclass(frozen=True, kw_only=True)
class AppYaml:
    """One service, as its file describes it.

    ``app`` is ``module:callable``, in ``directory``. ``notes`` are sentences for the person at the terminal.
    """

    path: Path
    service: str
    app: str
    directory: Path
    env_variables: Mapping[str, str]
    notes: tuple[str, ...]
    handlers: tuple[HandlerRule, ...] = ()


def read_app_yaml(path: Path) -> AppYaml:
    """Return the content of the file. Raises :class:`AppYamlError` if it can't be read or is wrong."""
    parsed = _Parsed(path, appinfo.LoadSingleAppInfo)
    info, root = parsed.info, parsed.root
    parsed.check_env_variables()
    _merge_includes(info, parsed)
    notes = _runtime_notes(info, parsed)
    entry = _entry(info, parsed)
    notes += _unused_notes(root, parsed.left_out)
    handlers = rules_of(info, path.absolute().parent)
    for problem in filter(None, map(problem_of_rule, handlers)):
        raise AppYamlError(parsed.path, parsed.line("handlers"), f"{problem}.")
    return AppYaml(
        path=path,
        service=str(info.service or info.module or "default"),
        app=entry.app,
        directory=_directory(path, entry, parsed),
        env_variables=_env_variables(info, path),
        notes=tuple(notes),
        handlers=handlers,
    )


class _Parsed:
    """A file that ``load``, a function of the SDK, has parsed into ``info``; ``root`` is the YAML node."""

    def __init__(self, path: Path, load: Callable[[str], Any]) -> None:
        self.path = str(path)
        self._text = read_text(path, AppYamlError)
        self.root = compose(self._text, self.path, AppYamlError)
        if self.root is None:
            raise AppYamlError(self.path, None, "it is empty; it needs at least 'runtime: python3…'.")
        if not is_mapping(self.root):
            raise AppYamlError(self.path, line_of(self.root), "it takes fields, such as 'runtime: python312'.")
        for name, problem in _OTHER_FILES.items():
            if (line := self.line(name)) is not None:
                raise AppYamlError(self.path, line, f"{problem}.")
        self.left_out: list[str] = []
        self.info = self._load(load)

    def line(self, name: str) -> int | None:
        """Return the line of a field; None if the file does not have it."""
        return next((line_of(key) for key, _value in self.root.value if key.value == name), None)

    def check_env_variables(self) -> None:
        """Reject values that are no text. The SDK would turn them into a surprising text."""
        node = value_of(self.root, "env_variables")
        for key, value in node.value if is_mapping(node) else ():
            if isinstance(value.value, list) or value.tag == _NULL_TAG:
                raise AppYamlError(
                    self.path,
                    line_of(key),
                    f"environment variable {key.value} takes a text; write '' for an empty one.",
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
        """Replace the field that the parser rejects by blanks, for another try. Raise if the server uses the field."""
        problem = problem_of(error, _TAKES)
        # The event that ends a block is at the beginning of the next block.
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
        """Return the field that ``index`` is in, and the indexes at which the field begins and ends."""
        begins = [(key.value, key.start_mark.index) for key, _value in self.root.value]
        ends = [begin for _name, begin in begins[1:]] + [len(self._text)]
        for (name, begin), end in zip(begins, ends, strict=True):
            if begin < index <= end:
                return str(name), begin, end
        return "", 0, 0


def _merge_includes(info: Any, parsed: _Parsed) -> None:
    """Merge the files that ``info`` includes, and the files that those include, into ``info``."""
    pending = [(parsed, include) for include in info.includes or ()]
    seen: set[Path] = set()
    while pending:
        parent, include = pending.pop(0)
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
        pending += [(included, further) for further in included.info.includes or ()]
        appinfo.AppInclude.MergeAppYamlAppInclude(info, included.info)


def _entry(info: Any, parsed: _Parsed) -> EntrypointApp:
    if not info.entrypoint:
        return EntrypointApp(app=DEFAULT_APP)
    # The SDK puts it before the command.
    command = str(info.entrypoint).removeprefix("exec ")
    try:
        return parse_entrypoint(command)
    except ValueError as error:
        raise AppYamlError(
            parsed.path,
            parsed.line("entrypoint"),
            f"the entrypoint {command!r} can't be served here: {error}. Use an entrypoint such as "
            "'gunicorn -b :$PORT main:app', or serve the app as MODULE:CALLABLE instead of this file.",
        ) from error


def _env_variables(info: Any, path: Path) -> dict[str, str]:
    """Return the variables as the app's process needs them.

    On App Engine, Python starts in the folder of the file, and relative entries of ``PYTHONPATH`` are in that folder.
    Here, Python starts in the folder of the command, so the entries are made absolute.
    """
    variables = {name: str(value) for name, value in (info.env_variables or {}).items()}
    if paths := variables.get("PYTHONPATH"):
        folder = path.absolute().parent
        variables["PYTHONPATH"] = os.pathsep.join(str(folder / entry) for entry in paths.split(os.pathsep))
    return variables


def _directory(path: Path, entry: EntrypointApp, parsed: _Parsed) -> Path:
    directory = path.absolute().parent / (entry.directory or "")
    if not directory.is_dir():
        raise AppYamlError(parsed.path, parsed.line("entrypoint"), f"there is no directory {directory} to change to.")
    return directory


def _runtime_notes(info: Any, parsed: _Parsed) -> list[str]:
    runtime = str(info.GetEffectiveRuntime())
    if runtime not in ("python", "custom") and not runtime.startswith("python3"):
        raise AppYamlError(
            parsed.path, parsed.line("runtime"), f"runtime is {runtime!r}; the local server serves Python 3 only."
        )
    here = f"python3{sys.version_info.minor}"
    if runtime.startswith("python3") and runtime != here:
        return [f"runtime is {runtime}; the local server runs it with its own Python, {here}."]
    return []


def _unused_notes(root: Any, left_out: list[str]) -> list[str]:
    unused = dict.fromkeys(key.value for key, _value in root.value if key.value not in (*_USED, *_GRANTED))
    notes = [f"not used by the local server: {', '.join(unused)}."] if unused else []
    odd = [name for name in unused if name in left_out and name in appinfo.AppInfoExternal.ATTRIBUTES]
    if odd:
        notes.append(f"the SDK does not accept the value of {', '.join(odd)}.")
    return notes

"""App Engine's YAML files: read, and where in them something is.

Both ``queue.yaml`` and ``app.yaml`` are parsed by the SDK. What goes wrong is told with the file and the line, as far
as the parser knows it:

    text = read_text(path, QueueYamlError)
    root = compose(text, str(path), QueueYamlError)     # a ruamel.yaml node, or None for an empty file
    line_of(value_of(root, "queue"))                    # 3
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.appengine.api import yaml_errors
from ruamel import yaml as ruamel_yaml
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from deferred_middleware.errors import ServerError

_UNASSIGNED = re.compile(r"Unable to assign value '(?P<value>.*)' to attribute '(?P<field>\w+)'")


class YamlFileError(ServerError):
    """A file can't be used. ``path`` is the file, ``line`` the line, counted from 1, or None."""

    def __init__(self, path: str, line: int | None, problem: str) -> None:
        self.path = path
        self.line = line
        super().__init__(f"{path}, line {line}: {problem}" if line is not None else f"{path}: {problem}")


def read_text(path: Path, kind: type[YamlFileError]) -> str:
    """Return the file's text. Raises ``kind`` when it can't be read or is no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise kind(str(path), None, f"it can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise kind(str(path), None, "it is no text in UTF-8.") from error


def compose(text: str, path: str, kind: type[YamlFileError]) -> Any:
    """Return the root node of the text, None when it is empty. Raises ``kind`` when it is no YAML."""
    try:
        return ruamel_yaml.YAML().compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise kind(path, mark.line + 1 if mark else None, f"it is no YAML: {problem}.") from error
    except YAMLError as error:
        raise kind(path, None, f"it is no YAML: {error}") from error


def is_mapping(node: Any) -> bool:
    """Tell whether a node has fields."""
    return isinstance(node, ruamel_yaml.MappingNode)


def is_sequence(node: Any) -> bool:
    """Tell whether a node is a list."""
    return isinstance(node, ruamel_yaml.SequenceNode)


def value_of(node: Any, name: str) -> Any:
    """Return the node of a field, None when ``node`` hasn't got it or has no fields at all."""
    if is_mapping(node):
        for key, value in node.value:
            if key.value == name:
                return value
    return None


def line_of(node: Any) -> int:
    """Return the line on which a node begins, counted from 1."""
    return int(node.start_mark.line) + 1


def problem_of(error: yaml_errors.EventError, takes: Mapping[str, str]) -> str:
    """Return what one of the SDK's parsers complains of, as a sentence without its full stop.

    ``takes`` says what each field takes, for whoever wrote something else.
    """
    problem = "".join(str(error.cause).splitlines()[:1])
    unassigned = _UNASSIGNED.match(problem)
    if unassigned and unassigned["field"] in takes:
        return wrong_value(unassigned["field"], unassigned["value"], takes)
    return problem.rstrip(":.") or "this is not what belongs here"


def wrong_value(name: str, value: object, takes: Mapping[str, str]) -> str:
    """Say that a field has a value that it doesn't take."""
    return f"{name} is {value!r}: it takes {takes[name]}"

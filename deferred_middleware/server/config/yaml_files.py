"""App Engine's YAML files, and the lines of their fields.

The SDK parses both ``queue.yaml`` and ``app.yaml``. The functions here find the file and the line for an error message,
as far as the parser knows the line:

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
    """A YAML file is wrong. ``path`` is the file, ``line`` the line, counted from 1, or None."""

    def __init__(self, path: str, line: int | None, problem: str) -> None:
        self.path = path
        self.line = line
        super().__init__(f"{path}, line {line}: {problem}" if line is not None else f"{path}: {problem}")


def read_text(path: Path, kind: type[YamlFileError]) -> str:
    """Return the file's text. Raises ``kind`` if it can't be read or is not text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise kind(str(path), None, f"it can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise kind(str(path), None, "it is not text in UTF-8.") from error


def compose(text: str, path: str, kind: type[YamlFileError]) -> Any:
    """Return the root node of the text; None if it is empty. Raises ``kind`` if it is not YAML."""
    try:
        return ruamel_yaml.YAML().compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise kind(path, mark.line + 1 if mark else None, f"it is not YAML: {problem}.") from error
    except YAMLError as error:
        raise kind(path, None, f"it is not YAML: {error}") from error


def is_mapping(node: Any) -> bool:
    """Tell whether a node has fields."""
    return isinstance(node, ruamel_yaml.MappingNode)


def is_sequence(node: Any) -> bool:
    """Tell whether a node is a list."""
    return isinstance(node, ruamel_yaml.SequenceNode)


def value_of(node: Any, name: str) -> Any:
    """Return the node of a field; None if ``node`` does not have it or has no fields."""
    if is_mapping(node):
        for key, value in node.value:
            if key.value == name:
                return value
    return None


def line_of(node: Any) -> int:
    """Return the line on which a node begins, counted from 1."""
    return int(node.start_mark.line) + 1


def problem_of(error: yaml_errors.EventError, takes: Mapping[str, str]) -> str:
    """Return the error of one of the SDK's parsers as a sentence without its full stop.

    ``takes`` describes the legal values of each field.
    """
    problem = "".join(str(error.cause).splitlines()[:1])
    unassigned = _UNASSIGNED.match(problem)
    if unassigned and unassigned["field"] in takes:
        return wrong_value(unassigned["field"], unassigned["value"], takes)
    return problem.rstrip(":.") or "this is not legal here"


def wrong_value(name: str, value: object, takes: Mapping[str, str]) -> str:
    """Return the sentence for a field whose value is not legal, without its full stop."""
    return f"{name} is {value!r}: it takes {takes[name]}"

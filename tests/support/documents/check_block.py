"""Checks a block of a page that is not Python: that a file parses, and that a command has these arguments."""

from __future__ import annotations

import argparse
import configparser
import contextlib
import io
import json
import re
import shlex
from collections.abc import Callable
from typing import Any

from google.appengine.api import appinfo, croninfo, queueinfo
from ruamel.yaml import YAML

from deferred_middleware.cli.command import PROGRAM
from deferred_middleware.cli.main import COMMANDS
from tests.support.pages import Block

_ASSIGNMENT = re.compile(r"[A-Za-z_]+=")


def check(block: Block) -> str:
    """Return what is wrong with a block; an empty text if nothing is."""
    checker = _CHECKERS.get(block.language)
    if checker is None:
        return f"nothing checks {block.language!r}: write before it why it is not executed"
    try:
        return checker(block) or ""
    except Exception as error:  # noqa: BLE001 - each parser has errors of its own
        return f"{type(error).__name__}: {error}"


def _check_commands(block: Block) -> str:
    if not block.steps:
        return "a block of commands has no line that begins with '$ '"
    return "; ".join(filter(None, (_check_command(command) for command, _ in _joined(block))))


def _joined(block: Block) -> list[tuple[str, str]]:
    """Return the steps; a line that ends in a backslash goes on in the next."""
    joined = block.body.replace("\\\n", " ")
    return type(block)(**{**vars(block), "body": joined}).steps


def _check_command(command: str) -> str:
    words = shlex.split(command, comments=True)
    while words and _ASSIGNMENT.match(words[0]):
        del words[0]
    if not words or words[0] != PROGRAM:
        return f"{command!r} is not a command of this package: write before the block why it is not executed"
    found = [known for known in COMMANDS if known.name in words[1:2]]
    if not found:
        return "" if words[1:2] == ["--version"] else f"there is no command {words[1:2]}"
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            found[0].make_parser().parse_args(words[2:])
    except SystemExit:
        return f"{command!r}: {output.getvalue().strip()}"
    except argparse.ArgumentError as error:
        return str(error)
    return ""


def _check_yaml(block: Block) -> str:
    content = YAML(typ="safe").load(block.body)
    if not isinstance(content, dict):
        return "no mapping"
    kinds: dict[str, Callable[[str], Any]] = {
        "runtime": appinfo.LoadSingleAppInfo,
        "queue": queueinfo.LoadSingleQueue,
        "cron": croninfo.LoadSingleCron,
    }
    for key, load in kinds.items():
        if key in content:
            load(block.body)
    return ""


def _check_ini(block: Block) -> None:
    configparser.ConfigParser(strict=False, interpolation=None).read_string(block.body)


_CHECKERS: dict[str, Callable[[Block], str | None]] = {
    "console": _check_commands,
    "yaml": _check_yaml,
    "json": lambda block: json.loads(block.body) and None,
    "ini": _check_ini,
    "python": lambda block: compile(block.body, block.page, "exec") and None,
    "text": lambda block: None,
}

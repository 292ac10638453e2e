"""``deferred-middleware check``: find ``defer`` calls in a code base that will fail, without running any of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deferred_middleware.cli.source_check import Finding, check_source
from deferred_middleware.errors import ServerError

if TYPE_CHECKING:
    from deferred_middleware.cli import Subparsers

# Folders that hold other people's code, or none.
_PASSED_OVER = {"node_modules", "site-packages", "__pycache__", "venv", "env", "build", "dist"}


def add_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the command to ``commands``, argparse's subparsers, and return its parser."""
    parser = commands.add_parser(
        "check",
        help="find defer calls that will fail, by reading the code",
        description="Read Python files and find defer calls that will fail: lambdas and nested functions, unknown "
        "options, arguments that don't fit or can't be pickled. Nothing is imported or run. The exit status is 1 if "
        "an error was found; a note is something that failed in the older library and works here.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, or a folder to look through")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of lines")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Check what ``arguments`` name and print what is found; return the exit status."""
    findings: list[Finding] = []
    files = list(python_files(arguments.paths))
    for path in files:
        findings += _check_file(path)
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(finding)
        errors = sum(finding.severity == "error" for finding in findings)
        print(f"{errors} errors and {len(findings) - errors} notes in {len(files)} files.")
    return 1 if any(finding.severity == "error" for finding in findings) else 0


def python_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the Python files among ``paths`` and below them; raises :class:`ServerError` for one that isn't there."""
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            for directory, below, names in os.walk(path):
                below[:] = sorted(name for name in below if name not in _PASSED_OVER and not name.startswith("."))
                yield from (Path(directory, name) for name in sorted(names) if name.endswith(".py"))
        else:
            raise ServerError(f"{path} is neither a file nor a folder.")


def _check_file(path: Path) -> list[Finding]:
    import tokenize

    try:
        with tokenize.open(path) as stream:  # which decodes as the file says it is encoded
            source = stream.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return [Finding(path=str(path), line=1, column=1, severity="error", message=f"can't be read: {error}")]
    return check_source(source, str(path))

"""``deferred-middleware check``: find ``defer`` calls in a code base that will fail, without running any of it."""

from __future__ import annotations

import argparse
import dataclasses
import os
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path

from deferred_middleware.cli.command import Command
from deferred_middleware.cli.output import count, print_json, print_line
from deferred_middleware.cli.source_check import Finding, check_source
from deferred_middleware.errors import ServerError

# Folders of other people's code, and of no source code.
_SKIPPED_FOLDERS = {"node_modules", "site-packages", "__pycache__", "venv", "env", "build", "dist"}


def check_code(arguments: argparse.Namespace) -> int:
    """Check the files and folders of the command line, and print the findings; return 1 if one is an error."""
    findings: list[Finding] = []
    files = list(_find_python_files(arguments.paths))
    for path in files:
        findings += _check_file(path)
    errors = sum(finding.severity == "error" for finding in findings)
    if arguments.json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            print_line(str(finding))
        notes = len(findings) - errors
        print_line(f"{count(errors, 'error')} and {count(notes, 'note')} in {count(len(files), 'file')}.")
    return 1 if errors else 0


def _find_python_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the Python files among ``paths`` and below them. Raises :class:`ServerError` for a path that is missing."""
    for path in paths:
        if path.is_file():
            yield path
        elif path.is_dir():
            for directory, below, names in os.walk(path):
                below[:] = sorted(name for name in below if name not in _SKIPPED_FOLDERS and not name.startswith("."))
                yield from (Path(directory, name) for name in sorted(names) if name.endswith(".py"))
        else:
            raise ServerError(f"{path} is neither a file nor a folder.")


def _check_file(path: Path) -> list[Finding]:
    try:
        with tokenize.open(path) as stream:  # decodes the file as its coding comment says
            source = stream.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return [Finding(path=str(path), line=1, column=1, severity="error", message=f"can't be read: {error}")]
    return check_source(source, str(path))


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a Python file, or a folder of such files")
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")


COMMANDS = (
    Command(
        name="check",
        summary="find defer calls that will fail, by reading the code",
        description="Read Python files and find defer calls that will fail: lambdas and nested functions, unknown "
        "options, and arguments that don't fit or can't be pickled. Nothing is imported or run. The exit status is 1 "
        "if there is an error. A note marks a call that failed with google.appengine.ext.deferred and works here.",
        examples=(
            "deferred-middleware check .",
            "deferred-middleware check main.py --json",
        ),
        add_arguments=_add_check_arguments,
        run=check_code,
    ),
)

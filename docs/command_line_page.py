"""Write ``command-line.rst``, the manual's reference of the command line, from the parsers of the commands.

Run ``python docs/command_line_page.py``. A test compares the page with the parsers.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

from deferred_middleware.cli.command import PROGRAM, Command
from deferred_middleware.cli.main import COMMANDS

PAGE = Path(__file__).with_name("command-line.rst")
_CODE = re.compile(
    r"(?<![\w\\/-])(--[a-z][a-z-]*|DEFERRED(_[A-Z]+)+(=[\w-]+)?|deferred_middleware(\.\w+)+(\(\))?)", re.ASCII
)
"""What is set as code in the texts of the parsers."""
_HEAD = """\
============
Command line
============

..
    Written by command_line_page.py.

These are all commands of ``deferred-middleware``, with their arguments. ``deferred-middleware
COMMAND --help`` prints the same. :doc:`local-server` and :doc:`operations` explain them.

The exit status is 0, or 1 after an error, which is one sentence on standard error, or 2 for
arguments that can't be used. :doc:`operations` lists the further statuses of single commands.
``python -m deferred_middleware`` is the same program. ``--version`` prints its version.
"""


def page() -> str:
    """Return the page."""
    lines = [_HEAD]
    for command in COMMANDS:
        lines += _command(command)
    return "\n".join(lines).rstrip("\n") + "\n"


def _command(command: Command) -> Iterable[str]:
    yield from (f".. _command-{command.name}:", "", command.name, "=" * len(command.name), "")
    yield from (*_wrapped(_markup(command.description)), "")
    parser = command.make_parser()
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    yield from (".. code-block:: text", "", f"    {PROGRAM} {command.name} {_usage(actions)}".rstrip(), "")
    for action in actions:
        yield from (*_wrapped(_heading(action)), *_wrapped(_meaning(action), "    "), "")
    if command.examples:
        yield from ("Examples:", "", ".. code-block:: text", "")
        yield from (*(f"    {example}" for example in command.examples), "")


def _usage(actions: Iterable[argparse.Action]) -> str:
    positional = [_operand(action) for action in actions if not action.option_strings]
    required = [f"{action.option_strings[-1]} {_value(action)}" for action in actions if _is_required_option(action)]
    return " ".join(["[OPTIONS]", *required, *positional])


def _is_required_option(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.required


def _operand(action: argparse.Action) -> str:
    name = _value(action)
    if action.nargs in ("*", "+", argparse.REMAINDER):
        name += "…"
    return f"[{name}]" if action.nargs in ("?", "*", argparse.REMAINDER) else name


def _heading(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else _value(action)
    if not action.option_strings:
        return f"``{value}``"
    return ", ".join(f"``{option} {value}``" if value else f"``{option}``" for option in action.option_strings)


def _value(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper().replace("_", "-")


def _meaning(action: argparse.Action) -> str:
    # argparse fills in what stands as %(default)s, and makes %% a percent sign.
    values = {**vars(action), "prog": PROGRAM}
    text = _markup((action.help or "") % values)
    text = text[:1].upper() + text[1:]
    if action.metavar is not None and action.choices is not None:
        text += f" (one of {', '.join(map(str, action.choices))})"
    return text.rstrip(".") + "."


def _markup(text: str) -> str:
    """Mark options and settings as code, and escape what reStructuredText would take as markup."""
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", " ".join(text.split()))
    parts = re.split(r"(``.*?``)", text)
    return "".join(part if part.startswith("``") else _marked(part) for part in parts)


def _marked(text: str) -> str:
    # An underscore is markup only at the end of a word.
    text = re.sub(r"([*\\|]|_(?!\w))", r"\\\1", text)
    return _CODE.sub(r"``\g<0>``", text)


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )


if __name__ == "__main__":
    PAGE.write_text(page())

"""What each command of ``deferred-middleware`` consists of."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import shutil
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

PROGRAM = "deferred-middleware"

if TYPE_CHECKING:
    from typing import NoReturn, TypeAlias

    Subparsers: TypeAlias = argparse._SubParsersAction["CommandParser"]
    """What ``ArgumentParser.add_subparsers()`` returns; argparse has no public name for the type."""

_CHOICE = re.compile(r"invalid choice: '(?P<given>.*?)' \(choose from (?P<choices>.*)\)")
_FEWEST_COLUMNS = 40


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors suggest what may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with status 2."""
        found = _CHOICE.search(message)
        if found is not None:
            choices = [choice.strip(" '") for choice in found["choices"].split(",")]
            message += _suggestion(found["given"], choices)
        super().error(message)

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Print that these arguments are not known, and exit with status 2."""
        options = [option for action in self._actions for option in action.option_strings]
        hints = [_suggestion(given.partition("=")[0], options) for given in unknown if given.startswith("-")]
        self.error(f"unrecognized arguments: {' '.join(unknown)}{next(filter(None, hints), '')}")


def _suggestion(given: str, known: Sequence[str]) -> str:
    similar = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {similar[0]}?" if similar else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command. To add one, put it into the ``COMMANDS`` of a module of this package; ``main`` collects them."""

    name: str
    """The word on the command line."""
    summary: str
    """The line about it in ``deferred-middleware --help``."""
    description: str
    """The text about it in ``deferred-middleware NAME --help``."""
    add_arguments: Callable[[argparse.ArgumentParser], None]
    """Adds the command's own arguments to its parser."""
    run: Callable[[argparse.Namespace], int]
    """Runs the command and returns the exit status; raises :class:`~deferred_middleware.errors.ServerError`."""

    examples: Sequence[str] = ()
    """Command lines that the help shows."""

    def add_parser(self, subparsers: Subparsers) -> CommandParser:
        """Add the command's parser to ``subparsers``, and return it."""
        width = max(_FEWEST_COLUMNS, shutil.get_terminal_size().columns - 2)
        parser = subparsers.add_parser(
            self.name,
            help=self.summary,
            description=textwrap.fill(self.description, width),
            epilog="\n  ".join(["examples:", *self.examples]) if self.examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.add_arguments(parser)
        parser.add_argument("--traceback", action="store_true", help="print the traceback of an error as well")
        parser.set_defaults(run_command=self.run, command_parser=parser)
        return parser

    def make_parser(self) -> CommandParser:
        """Return the command's parser alone."""
        return self.add_parser(CommandParser(prog=PROGRAM).add_subparsers())

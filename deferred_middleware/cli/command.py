"""What each command of ``deferred-middleware`` consists of."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
    """What ``ArgumentParser.add_subparsers()`` returns; argparse has no public name for the type."""


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

    def add_parser(self, subparsers: Subparsers) -> argparse.ArgumentParser:
        """Add the command's parser to ``subparsers``, and return it."""
        parser = subparsers.add_parser(self.name, help=self.summary, description=self.description)
        self.add_arguments(parser)
        parser.add_argument("--traceback", action="store_true", help="print the traceback of an error as well")
        parser.set_defaults(run_command=self.run)
        return parser

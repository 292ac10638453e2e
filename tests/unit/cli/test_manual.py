"""The manual's page of the command line: it has every command and every argument of the parsers."""

from __future__ import annotations

import argparse
import re

import docutils.core
import pytest

from deferred_middleware.cli.command import Command
from deferred_middleware.cli.main import COMMANDS
from tests.support.manual import made_page
from tests.support.repository import ROOT

PAGE = (ROOT / "docs" / "command-line.rst").read_text()


@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_manuals_page_is_this_one(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    """docs/command-line.rst is the output of docs/command_line_page.py, whatever the width of the terminal."""
    monkeypatch.setenv("COLUMNS", columns)

    assert made_page("command_line_page") == PAGE


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_argument_is_there(command: Command) -> None:
    """A command has a section with each of its options and operands, and with its examples."""
    section = PAGE.partition(f".. _command-{command.name}:")[2].partition("\n.. _command-")[0]
    shown = [action for action in command.make_parser()._actions if action.help != argparse.SUPPRESS]
    options = [option for action in shown for option in action.option_strings if option not in ("-h", "--help")]
    headings = re.findall(r"^``.*``\n    \S", section, re.MULTILINE)

    assert [option for option in options if f"``{option}``" not in section and f"``{option} " not in section] == []
    assert len(headings) == len([action for action in shown if action.dest != "help"])
    assert all(f"    {example}\n" in section for example in command.examples)


def test_the_page_is_sound() -> None:
    """The texts of the parsers make no error of markup."""
    # These two are Sphinx's own.
    plain = PAGE.replace(":doc:`", "`").replace("`local-server`", "this").replace("`operations`", "this")
    docutils.core.publish_string(plain, writer="null", settings_overrides={"halt_level": 2, "report_level": 2})

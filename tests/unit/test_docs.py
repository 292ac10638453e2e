"""Tests of what is written for people: that it names what there is, with the values that hold."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import docutils.core
import pytest

import deferred_middleware
from deferred_middleware import Settings, TaskContext
from deferred_middleware.calls.options import _CHECKS
from deferred_middleware.cli.command import Command
from deferred_middleware.cli.main import COMMANDS
from deferred_middleware.config.settings import TABLE

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.rst").read_text()
PAGES = {path.name: path.read_text() for path in (ROOT / "docs").rglob("*.rst")}


def shown(value: object, variable: str) -> str:
    """Return a default as the pages write it."""
    if value is None or value == ():
        return "none"
    if variable.endswith("_LOG_LEVEL"):
        import logging

        return logging.getLevelName(int(str(value)))
    if isinstance(value, bool):
        return str(value).lower()
    return (",".join(value) or "none") if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.variable)
def test_every_setting_is_documented_with_its_default(setting: object) -> None:
    """The settings page, to which README leads, names each variable, its alias and its default."""
    row = next(row for row in TABLE if row is setting)
    default = shown(getattr(Settings(), row.field), row.variable)

    assert "``docs/settings.rst`` has all of them" in README
    heading = f"``{row.variable}``" + (f" (or ``{row.alias}``)" if row.alias else "")
    ending = ", no default" if default == "none" else f", default ``{default}``"
    assert heading + ending in PAGES["settings.rst"]


def test_no_setting_is_documented_that_is_not_there() -> None:
    """A variable with our prefix in README or on a page exists."""
    text = README + "".join(PAGES.values())

    assert set(re.findall(r"\bDEFERRED_[A-Z_]*[A-Z]", text)) == {row.variable for row in TABLE}


@pytest.mark.parametrize("name", deferred_middleware.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    """The API page, and a docstring, say what each public name is."""
    assert re.search(rf"\b{name}\b", PAGES["api.rst"])
    assert inspect.getdoc(getattr(deferred_middleware, name))


FUNCTIONS = [name for name in deferred_middleware.__all__ if inspect.isfunction(getattr(deferred_middleware, name))]
RAISE_NOTHING = {"current_task", "log_as_retried"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_says_its_types_and_errors(name: str) -> None:
    """Each parameter and the result have a type, and the docstring lists what the function raises."""
    function = getattr(deferred_middleware, name)
    signature = inspect.signature(function)

    untyped = [each.name for each in signature.parameters.values() if each.annotation is inspect.Parameter.empty]
    assert untyped == []
    assert signature.return_annotation is not inspect.Signature.empty
    assert name in RAISE_NOTHING or "Raises:" in (inspect.getdoc(function) or "")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.variable)
def test_a_field_of_the_settings_is_named_as_its_variable(row: object) -> None:
    """The docstring of Settings says how a field and its variable are named."""
    found = next(each for each in TABLE if each is row)

    assert found.variable == f"DEFERRED_{found.field.upper()}"


@pytest.mark.parametrize("option", _CHECKS)
def test_every_option_is_documented(option: str) -> None:
    """README, the enqueue page and the docstring of defer name each option."""
    assert f"``{option}``" in README
    assert f"\n``{option}``\n" in PAGES["enqueue.rst"]
    assert f"``{option}``" in (deferred_middleware.defer.__doc__ or "")


def test_every_fact_of_a_task_is_documented() -> None:
    """The page about tasks names each property of the context."""
    facts = [name for name, value in vars(TaskContext).items() if isinstance(value, property) and name[0] != "_"]

    assert [name for name in facts if f"``{name}``" not in PAGES["tasks.rst"]] == []


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("*.rst"), *ROOT.glob("examples/*/*.rst")]), ids=lambda path: path.name
)
def test_pages_are_sound_rst(path: Path) -> None:
    """README, changelog and the examples' pages have no error of markup; the package's index shows the README."""
    docutils.core.publish_string(
        path.read_text(), writer="null", settings_overrides={"halt_level": 2, "report_level": 2}
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_documented(command: Command) -> None:
    """Some page has each command, and each of its arguments."""
    parser = command.make_parser()
    pages = "".join(PAGES.values())

    assert f"``{command.name}" in pages or f"deferred-middleware {command.name}" in pages
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    assert [option for option in options if option != "--help" and option not in pages] == []


def test_the_readme_fits_on_two_screens() -> None:
    """README says what, for whom and how to begin; the manual has the rest."""
    assert len(README.splitlines()) <= 100
    assert "make test" in README
    assert "make demo" in README


def readme_example() -> str:
    """Return the README's first block of Python."""
    found = re.search(r"\.\. code-block:: python\n\n((?:    .*\n|\n)+)", README)
    assert found
    return inspect.cleandoc(found.group(1))


def test_the_readmes_example_is_short_and_compiles() -> None:
    """The first example, which an acceptance test runs, has at most fifteen lines."""
    lines = [line for line in readme_example().splitlines() if line.strip()]

    assert len(lines) <= 15
    ast.parse(readme_example())


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_every_test_says_what_it_is_about() -> None:
    """Each test function has a docstring that is a sentence."""
    functions = [
        (path, node)
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    silent = [
        f"{path}: {f.name}" for path, f in functions if not (ast.get_docstring(f) or "").rstrip(")").endswith(".")
    ]

    assert silent == []

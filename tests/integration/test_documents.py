"""Each block of code in the documentation is run or checked, or says why not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents.check_block import check
from tests.support.documents.run_page import SETUPS, python_blocks
from tests.support.pages import blocks
from tests.support.repository import ROOT

PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]
RUN_ELSEWHERE = {"tutorial.rst"}  # tests/acceptance/test_tutorial.py follows it as a reader does.
RUN_SECONDS = 120


def short(page: Path) -> str:
    """Return the name of a page in the repository."""
    return str(page.relative_to(ROOT))


RUN = [page for page in PAGES if page.name not in RUN_ELSEWHERE and python_blocks(page)]


@pytest.mark.parametrize("page", RUN, ids=short)
def test_the_python_of_each_page_runs(page: Path, tmp_path: Path) -> None:
    """The blocks of Python of a page run in their order."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.documents.run_page", str(page), str(tmp_path)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DEFERRED_", "PYTEST_"))}

    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_the_other_blocks_of_each_page_are_checked(page: Path) -> None:
    """Files parse, commands of this package have these arguments, and any other block says why it is not executed."""
    followed = page.name in RUN_ELSEWHERE
    wrong = {
        f"{short(page)}:{block.line}": problem
        for block in blocks(page)
        if not block.not_executed and not (followed and block.language == "console") and (problem := check(block))
    }

    assert wrong == {}


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_each_block_says_its_language(page: Path) -> None:
    """No page has a literal block (``::``), which is neither highlighted nor checked; and each block is read."""
    text = page.read_text()

    assert re.findall(r"^(?!\.\. ).*::\n\n +\S.*", text, re.MULTILINE) == []
    assert text.count(".. code-block::") == len(blocks(page))


def test_each_set_up_belongs_to_a_page() -> None:
    """No set-up is left over."""
    assert {path.stem for path in SETUPS.glob("*.py")} <= {page.stem.replace("-", "_") for page in RUN}


@pytest.mark.parametrize(
    "block",
    [
        "python\n\n   nothing = (",
        "yaml\n\n   runtime: python312\n   handlers: 7",
        "yaml\n\n   a: [",
        "json\n\n   {",
        "console\n\n   $ deferred-middleware serve --no-such-option",
        "console\n\n   $ deferred-middleware nothing",
        "console\n\n   $ rm -r .",
        "dockerfile\n\n   FROM nothing",
    ],
)
def test_a_wrong_block_is_found(block: str, tmp_path: Path) -> None:
    """A block that doesn't parse, and a command that is not known, are reported; a reason before it silences that."""
    page = tmp_path / "page.rst"
    page.write_text(f"Page\n\n.. code-block:: {block}\n\n")
    marked = tmp_path / "marked.rst"
    marked.write_text(f".. not executed: it is an example.\n\n.. code-block:: {block}\n\n")

    assert [bool(check(found)) for found in blocks(page)] == [True]
    assert [found.not_executed for found in blocks(marked)] == ["it is an example."]

"""A type checker sees a function's own types in calls through ``@task``."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SOURCE = """
from deferred_middleware import task


@task(queue="mail")
def send(user: int, *, loud: bool = False) -> str:
    return ""


@task
async def later(user: int) -> None: ...


class Shop:
    @task
    def sell(self, item: str) -> int:
        return 1

    @task(queue="slow")
    @classmethod
    def open(cls, name: str) -> int:
        return 1

    @task
    @staticmethod
    def count(number: int) -> int:
        return 1


shop = Shop()
fine: str = send(1, loud=True)
send.defer(1, loud=True)
send.options(countdown=5).defer(1)
later.defer_async(1)
number: int = shop.sell("tea")
shop.sell.defer("tea")
Shop.open.defer("x")
Shop.count.defer(1)
send.defer("one")  # wrong: a text for a number
send.defer()  # wrong: nothing
send.defer(1, laud=True)  # wrong: misspelt
send.options(queue="x").call(1, 2)  # wrong: one too many
later.defer(None)  # wrong: None
shop.sell.defer(1)  # wrong: a number for a text
Shop.open.defer(1)  # wrong: a number for a text
Shop.count.defer("x")  # wrong: a text for a number
bad: int = send(1)  # wrong: returns a text
task(queues="x")  # wrong: no such option
"""


def test_wrong_arguments_are_type_errors(tmp_path: Path) -> None:
    """Mypy --strict reports exactly the calls that are marked as wrong."""
    path = tmp_path / "shop.py"
    path.write_text(SOURCE)

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), path],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )

    found = {int(line) for line in re.findall(r"shop\.py:(\d+): error", done.stdout)}
    wrong = {number for number, line in enumerate(SOURCE.splitlines(), 1) if "# wrong" in line}
    assert found == wrong, done.stdout + done.stderr

"""Write ``answers.rst``, the manual's table of what a queue can answer, from the table that the package works with.

Run ``python docs/answers_table.py``; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from deferred_middleware.engines import answers
from deferred_middleware.engines.answers import Answer

PAGE = Path(__file__).with_name("answers.rst")
_HEAD = """\
=======================
What a queue can answer
=======================

..
    Written by answers_table.py.

What can come back instead of "added", the exception that it becomes, and whether the add is tried again, under the same
name, for ``DEFERRED_ENQUEUE_SECONDS``. Each exception is an ``EnqueueError`` and of the SDK's type in the table. Its
``maybe_enqueued`` tells whether the queue may have the task nevertheless; once an attempt has left that open, it stays
open. For a name that was generated, "taken" is success. Tasks of a transaction are never tried again by themselves.
"""


def table(title: str, rows: Iterable[Answer]) -> str:
    """Return a section with a table of ``rows``."""
    lines = ["", title, "=" * len(title), "", ".. list-table::", "   :header-rows: 1", ""]
    for cells in [("Answer", "Meaning", "Exception", "Tried again", "May be enqueued"), *map(_cells, rows)]:
        lines += [f"   {'*' if place == 0 else ' '} - {cell}" for place, cell in enumerate(cells)]
    return "\n".join(lines) + "\n"


def _cells(answer: Answer) -> tuple[str, ...]:
    name = f"``{answer.what}``" if answer.what.isupper() else answer.what
    yes_or_no = ("yes" if answer.retried else "no", "yes" if answer.maybe_enqueued else "no")
    return (name, answer.meaning, f"``{answer.error}``", *yes_or_no)


def page() -> str:
    """Return the page."""
    return (
        _HEAD
        + table("Codes of the task queue", answers.BY_CODE.values())
        + table("Errors of the API call", answers.BY_RPC_ERROR.values())
        + table("No answer", answers.OF_CONNECTION)
        + table("Statuses of Cloud Tasks", answers.BY_STATUS.values())
    )


if __name__ == "__main__":
    PAGE.write_text(page())

"""Write ``answers.rst``, the manual's tables of a queue's answers, from the tables in the package.

Run ``python docs/answers_table.py``. A test compares the page with the tables.
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

These tables list the answers of a queue other than "added". For each answer, they give the
exception that ``defer`` raises, and whether the add is retried, under the same name, for
``DEFERRED_ENQUEUE_SECONDS``.

Each exception is an ``EnqueueError``, and also of the SDK's type in the table. Its attribute
``maybe_enqueued`` says whether the queue may have the task nevertheless. If this was true after one
attempt, it stays true. If the library generated the name, "the name is taken" counts as success.
Tasks of a transaction are not retried by the library.
"""


def table(title: str, rows: Iterable[Answer]) -> str:
    """Return a section with a table of ``rows``."""
    lines = ["", title, "=" * len(title), "", ".. list-table::", "   :header-rows: 1", ""]
    for cells in [("Answer", "Meaning", "Exception", "Retried", "May be enqueued"), *map(_cells, rows)]:
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

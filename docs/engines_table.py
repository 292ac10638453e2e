"""Write ``engines.rst``, the manual's table of what an engine can't do, from the table of the contract suite.

Run ``python docs/engines_table.py`` in the repository. A test compares the page with the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).with_name("engines.rst")
_HEAD = """\
=======
Engines
=======

..
    Written by engines_table.py.

One suite of tests runs the same app on each engine: on the SDK's own stub, on the local server, on
Cloud Tasks with App Engine targets, and on Cloud Tasks with URLs in a process without the SDK. For
the last one, it also runs on the emulator (:doc:`cloud-tasks-emulator`).

The suite also runs on a local server and on Cloud Tasks servers that fail every other call, each
time in another way: the server refuses the call for now, doesn't answer, cuts the connection, adds
half of the tasks, or loses the answer after it has added them.

What works on each engine is not in the table. An empty cell means that the engine can do it.

"""


def page() -> str:
    """Return the page."""
    from tests.support.engines.cannot import ABILITIES, ENGINE_NAMES

    lines = [".. list-table::", "   :header-rows: 1", ""]
    rows = [["", *ENGINE_NAMES.values()]]
    rows += [[each.what, *(each.cannot.get(engine, "") for engine in ENGINE_NAMES)] for each in ABILITIES.values()]
    for cells in rows:
        lines += [f"   {'*' if place == 0 else ' '} - {cell}".rstrip() for place, cell in enumerate(cells)]
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    PAGE.write_text(page())

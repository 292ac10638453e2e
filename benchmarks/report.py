"""Write the results of a run into the manual: the tables of ``docs/benchmarks.rst``, and its plots.

Run ``python benchmarks/report.py`` to write them again from ``docs/benchmarks/results.json``, which ``make bench`` has
written. The page is written by hand except for what is between the comments ``.. results: NAME`` and
``.. end of results``.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recording import Goal, Recording, Row, Table, amount

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.rst"
RESULTS = "benchmarks/results.json"
"""Relative to the page, as the plots are."""
_PART = re.compile(r"(?<=^\.\. results: )([a-z_]+)\n.*?(?=^\.\. end of results$)", re.MULTILINE | re.DOTALL)


def write(results: Mapping[str, Any], page: Path) -> None:
    """Write the results next to ``page``, draw the plots, and write the marked parts of the page."""
    import plots

    target = page.parent / RESULTS
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    for old in target.parent.glob("*.svg"):
        old.unlink()
    for name, run in results["scripts"].items():
        if run["recording"] is not None:
            plots.draw(file_name(name), Recording.from_json(run["recording"]).tables, target.parent)
    page.write_text(filled(page.read_text(), results))


def filled(page: str, results: Mapping[str, Any]) -> str:
    """Return the text of the page with the marked parts written anew."""

    def part(found: re.Match[str]) -> str:
        name = found[1]
        body = _machine(results) if name == "machine" else _script(name, results["scripts"].get(name))
        return f"{name}\n\n{body}\n"

    return _PART.sub(part, page)


def parts(page: str) -> list[str]:
    """Return the names of the marked parts of the page."""
    return [found[1] for found in _PART.finditer(page)]


def file_name(script: str) -> str:
    """Return the beginning of the names of a script's plots."""
    return script.replace("_", "-")


def _machine(results: Mapping[str, Any]) -> str:
    rows = [("Day", results["day"]), ("Version", results["version"]), *results["machine"].items()]
    return "\n".join([".. list-table::", "   :widths: 20 80", "", *_cells(rows)]) + "\n"


def _script(name: str, run: Mapping[str, Any] | None) -> str:
    if run is None or run["recording"] is None:
        return "This benchmark failed or was left out in this run.\n"
    recording = Recording.from_json(run["recording"])
    pieces = [_plots(name), *map(_table, recording.tables)]
    if recording.goals:
        pieces.append(_goals(recording.goals))
    pieces += [f"{what} is left out: {reason}.\n" for what, reason in recording.left_out.items()]
    return "\n".join(pieces)


def _plots(name: str) -> str:
    lines = []
    for scheme in ("light", "dark"):
        lines += [
            f".. image:: benchmarks/{file_name(name)}-{scheme}.svg",
            f"   :class: only-{scheme}",
            "   :width: 100%",
            "   :alt: Bars of the medians, with the quartiles. The tables below have the same figures.",
            "",
        ]
    return "\n".join(lines)


def _table(table: Table) -> str:
    ratios = table.ratios()
    head = ["", "Median", "Quartiles", "Samples"]
    if ratios:
        head.append("Ratio")
    rows = [head]
    for row in table.rows:
        cells = [row.name, amount(row.median, table.unit), _spread(row), f"{row.samples:,}"]
        if ratios:
            cells.append(amount(ratios[row.name]))
        rows.append(cells)
    return "\n".join([f".. list-table:: {table.title}", "   :header-rows: 1", "", *_cells(rows)]) + "\n"


def _spread(row: Row) -> str:
    return f"{amount(row.low)} to {amount(row.high)}" if row.samples > 1 else ""


def _goals(goals: list[Goal]) -> str:
    rows = [["Goal", "Bar", "Measured", "Met"]]
    rows += [
        [goal.what, f"{goal.kind} {amount(goal.bar, goal.unit)}", amount(goal.value), "yes" if goal.met else "**no**"]
        for goal in goals
    ]
    return "\n".join([".. list-table:: Goals", "   :header-rows: 1", "", *_cells(rows)]) + "\n"


def _cells(rows: list[Any]) -> list[str]:
    lines = []
    for cells in rows:
        for place, cell in enumerate(cells):
            first = f"   {'*' if place == 0 else ' '} - "
            wrapped = textwrap.wrap(cell, 100, initial_indent=first, subsequent_indent=" " * 7, break_on_hyphens=False)
            lines += wrapped or [first.rstrip()]
    return lines


if __name__ == "__main__":
    write(json.loads((PAGE.parent / RESULTS).read_text()), PAGE)

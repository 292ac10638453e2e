"""The results of a benchmark: printed as tables, and written as JSON for the report (``report.py``).

A script makes a :class:`Recording`, adds its tables and goals, and returns the status of :meth:`Recording.end`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender's figures: the median of its samples, and the quartiles ``low`` and ``high``."""

    name: str
    median: float
    low: float
    high: float
    samples: int
    ours: bool


@dataclass(frozen=True, kw_only=True)
class Table:
    """What was measured in one unit. ``reference`` names the row to which the ratios of the others refer."""

    title: str
    unit: str
    rows: tuple[Row, ...]
    reference: str | None

    def ratios(self) -> dict[str, float]:
        """Return each row's ratio to the reference; empty without one, or if its median is 0."""
        base = next((row.median for row in self.rows if row.name == self.reference), 0.0)
        return {row.name: row.median / base for row in self.rows} if base else {}


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A bar and the value that was measured; ``kind`` is ``at most`` or ``at least``."""

    what: str
    value: float
    unit: str
    bar: float
    kind: str
    met: bool


class Recording:
    """The tables, the goals and what was left out of one run of a script."""

    def __init__(self) -> None:
        self.tables: list[Table] = []
        self.goals: list[Goal] = []
        self.left_out: dict[str, str] = {}

    def table(
        self,
        title: str,
        unit: str,
        samples: Mapping[str, Sequence[float]],
        *,
        ours: Collection[str] = (),
        reference: str | None = None,
    ) -> dict[str, float]:
        """Print and record the samples of each contender. Return the medians."""
        rows = tuple(_row(name, values, ours=name in ours) for name, values in samples.items())
        table = Table(title=title, unit=unit, rows=rows, reference=reference)
        self.tables.append(table)
        _print(table)
        return {row.name: row.median for row in rows}

    def goal(
        self, what: str, value: float, *, at_most: float | None = None, at_least: float | None = None, unit: str = ""
    ) -> None:
        """Print and record whether ``value`` meets a bar."""
        if (at_most is None) == (at_least is None):
            raise ValueError("give either at_most or at_least")
        bar, kind = (at_most, "at most") if at_most is not None else (at_least, "at least")
        assert bar is not None
        met = value <= bar if kind == "at most" else value >= bar
        self.goals.append(Goal(what=what, value=value, unit=unit, bar=bar, kind=kind, met=met))
        print(f"  {what}: {amount(value, unit)}, goal {kind} {amount(bar, unit)}: {'met' if met else 'missed'}")

    def leave_out(self, what: str, reason: str) -> None:
        """Print and record that a contender was not measured."""
        self.left_out[what] = reason
        print(f"  {what} is left out: {reason}")

    def end(self, path: Path | None) -> int:
        """Write the results to ``path``, if there is one. Return the status: 1 if a goal was missed, or else 0."""
        if path is not None:
            path.write_text(json.dumps(self.as_json()))
        return 0 if all(goal.met for goal in self.goals) else 1

    def as_json(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return {
            "tables": [asdict(table) for table in self.tables],
            "goals": [asdict(goal) for goal in self.goals],
            "left_out": self.left_out,
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Recording:
        """Return the recording that :meth:`as_json` has written."""
        recording = cls()
        recording.tables = [
            Table(**{**table, "rows": tuple(Row(**row) for row in table["rows"])}) for table in found["tables"]
        ]
        recording.goals = [Goal(**goal) for goal in found["goals"]]
        recording.left_out = dict(found["left_out"])
        return recording


class Arguments(argparse.ArgumentParser):
    """The arguments of a benchmark: ``--json``, ``--quick``, and numbers with a default for each of the two ways."""

    def __init__(self, description: str | None, **numbers: tuple[float, float]) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._numbers = numbers
        self.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
        self.add_argument("--quick", action="store_true", help="measure less, to try the benchmark out")
        for name, (full, quick) in numbers.items():
            text = f"default {full:,}, quick {quick:,}"
            self.add_argument(f"--{name}", type=type(full), help=text)

    def parse(self) -> argparse.Namespace:
        """Return the options, with the defaults of the numbers that were not given."""
        options = self.parse_args()
        for name, (full, quick) in self._numbers.items():
            if getattr(options, name) is None:
                setattr(options, name, quick if options.quick else full)
        return options


def amount(value: float, unit: str = "") -> str:
    """Return a number with about three digits, and its unit."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    number = f"{value:,.{digits}f}"
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return f"{number} {unit}".rstrip()


def _row(name: str, values: Sequence[float], *, ours: bool) -> Row:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return Row(name=name, median=median, low=low, high=high, samples=len(values), ours=ours)


def _print(table: Table) -> None:
    width = max(len(row.name) for row in table.rows)
    ratios = table.ratios()
    print(f"{table.title} ({table.unit})")
    for row in table.rows:
        ratio = f"  {ratios[row.name]:8.3f}" if ratios else ""
        print(f"  {row.name:{width}}  {row.median:12,.3f}  ({row.low:,.3f} to {row.high:,.3f}){ratio}")

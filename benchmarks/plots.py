"""Draw the tables of a recording as SVG plots, for a light and for a dark page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from recording import Row, Table, amount

SCHEMES: Mapping[str, Mapping[str, str]] = {
    "light": {"text": "#24292f", "ours": "#0a5bd3", "other": "#8b949e", "spread": "#24292f"},
    "dark": {"text": "#d5dae0", "ours": "#5ca5ff", "other": "#7d8590", "spread": "#d5dae0"},
}
_WIDTH_INCHES, _BAR_INCHES, _HEAD_INCHES = 7.5, 0.3, 0.75
_LOGARITHMIC = 50.0
"""From this ratio between the largest and the smallest value of a plot on, its axis is logarithmic."""


def draw(name: str, tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write ``NAME-light.svg`` and ``NAME-dark.svg``, with one plot for each table below each other."""
    paths = []
    for scheme, colours in SCHEMES.items():
        path = folder / f"{name}-{scheme}.svg"
        settings = {
            "font.size": 10,
            "svg.fonttype": "none",  # texts stay texts, for search and for screen readers
            "svg.hashsalt": name,  # the same input gives the same file
            "text.parse_math": False,
            "text.color": colours["text"],
            "axes.edgecolor": colours["text"],
            "axes.labelcolor": colours["text"],
            "xtick.color": colours["text"],
            "ytick.color": colours["text"],
        }
        with matplotlib.rc_context(settings):
            _figure(tables, colours).savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
        paths.append(path)
    return paths


def _figure(tables: Sequence[Table], colours: Mapping[str, str]) -> Figure:
    numbers = [len(table.rows) for table in tables]
    height = _HEAD_INCHES * len(tables) + _BAR_INCHES * sum(numbers)
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    plots = figure.subplots(len(tables), 1, squeeze=False, gridspec_kw={"height_ratios": numbers})
    for (axes,), table in zip(plots, tables, strict=True):
        rows = table.rows[::-1]
        medians = [row.median for row in rows]
        spread = [[row.median - row.low for row in rows], [row.high - row.median for row in rows]]
        bars = axes.barh(
            [row.name for row in rows],
            medians,
            height=0.6,
            color=[colours["ours"] if row.ours else colours["other"] for row in rows],
            xerr=spread,
            error_kw={"ecolor": colours["spread"], "elinewidth": 1, "capsize": 3},
        )
        axes.bar_label(bars, labels=[f" {amount(median)}" for median in medians], padding=2)
        axes.set_title(table.title, loc="left", fontsize=11)
        axes.set_xlabel(table.unit)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        if _is_wide(rows):
            axes.set_xscale("log")
            axes.set_xlabel(f"{table.unit} (logarithmic)")
            axes.set_xlim(left=10 ** math.floor(math.log10(min(row.low for row in rows))))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: amount(value)))
    return figure


def _is_wide(rows: Sequence[Row]) -> bool:
    smallest = min(row.low for row in rows)
    return smallest > 0 and max(row.high for row in rows) / smallest > _LOGARITHMIC

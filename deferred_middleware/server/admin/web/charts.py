"""Charts as inline SVG, made by the server. Their numbers are in a table beside them.

A chart is drawn in a box that is as many units wide as it has spans and 100 units high, and is stretched to the width
of the page. So lines keep their width (``vector-effect``), and all texts are outside the drawing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from deferred_middleware.server.admin.web import words

_HEIGHT = 100
_STEPS = (1, 2, 5)


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar of a chart. ``label`` says what it shows."""

    x: float
    y: float
    height: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a chart: ``path`` in the form of SVG, with ``name`` in the legend. ``kind`` is its style."""

    name: str
    kind: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart. ``summary`` says what it shows, for those who don't see it; ``top`` is the label of its highest line."""

    id: str
    title: str
    total: str
    summary: str
    kind: str
    width: int
    top: str
    middle: str
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()


def count_chart(id_: str, title: str, spans: Sequence[dict[str, Any]], field: str, *, kind: str = "") -> Chart:
    """Return a chart with a bar for the number in each span."""
    numbers = [int(span[field]) for span in spans]
    top = _round_up(max(numbers, default=0))
    total = sum(numbers)
    bars = tuple(
        Bar(
            x=index + 0.08,
            y=round(_HEIGHT - number * _HEIGHT / top, 2),
            height=round(number * _HEIGHT / top, 2),
            label=f"{words.clock(span['start_usec'])[:16]}: {number:,}",
        )
        for index, (span, number) in enumerate(zip(spans, numbers, strict=True))
        if number
    )
    return Chart(
        id=id_,
        title=title,
        total=f"{total:,}",
        summary=f"{title}: {total:,} in all, at most {max(numbers, default=0):,} in one span",
        kind=kind,
        width=len(spans),
        top=words.number(top),
        middle=words.number(top / 2 if top % 2 else top // 2),
        bars=bars,
    )


def time_chart(id_: str, title: str, spans: Sequence[dict[str, Any]], low: str, high: str) -> Chart:
    """Return a chart with a line for the median and one for the 95th percentile of a duration."""
    longest = max((span[high] or 0 for span in spans), default=0)
    top = _round_up(longest)
    lines = tuple(
        Line(name=name, kind=kind, path=_path([span[field] for span in spans], lambda usec: _HEIGHT * (1 - usec / top)))
        for name, kind, field in (("p95", "high", high), ("p50", "low", low))
    )
    newest = next((span for span in reversed(spans) if span[high] is not None), None)
    shown = "no attempts" if newest is None else f"p95 {words.duration(newest[high] / 1e6)} lately"
    return Chart(
        id=id_,
        title=title,
        total=shown,
        summary=f"{title}: {shown}, at most {words.duration(longest / 1e6)} in one span" if longest else title,
        kind="time",
        width=len(spans),
        top=words.duration(top / 1e6),
        middle=words.duration(top / 2e6),
        lines=lines,
    )


def charts_of(spans: Sequence[dict[str, Any]]) -> list[Chart]:
    """Return all charts of a series."""
    return [
        count_chart("executed", "Executed", spans, "executed"),
        count_chart("failed", "Failed attempts", spans, "failed", kind="bad"),
        count_chart("enqueued", "Enqueued", spans, "enqueued", kind="quiet"),
        time_chart("took", "Running time", spans, "took_p50", "took_p95"),
        time_chart("waited", "Waiting time", spans, "waited_p50", "waited_p95"),
    ]


def _path(values: Sequence[int | None], height_of: Callable[[int], float]) -> str:
    """Return a path through the values; there is a gap where one is missing, and a lone value is a short line."""
    parts = []
    for index, value in enumerate(values):
        if value is None:
            continue
        height = round(height_of(value), 2)
        before = index > 0 and values[index - 1] is not None
        after = index + 1 < len(values) and values[index + 1] is not None
        if before:
            parts.append(f"L{index + 0.5} {height}")
        elif after:
            parts.append(f"M{index + 0.5} {height}")
        else:
            parts.append(f"M{index + 0.1} {height}h0.8")
    return "".join(parts)


def _round_up(number: float) -> int:
    """Return a round number that is not smaller."""
    if number <= 1:
        return 1
    scale: int = 10 ** math.floor(math.log10(number))
    return next(step * scale for step in (*_STEPS, 10) if step * scale >= number)

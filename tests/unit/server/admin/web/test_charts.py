"""Charts as SVG."""

from __future__ import annotations

from typing import Any

import pytest

from deferred_middleware.server.admin.web.charts import count_chart, time_chart


def _spans(field: str, values: list[Any]) -> list[dict[str, Any]]:
    return [{"start_usec": 60_000_000 * index, field: value, "low": value} for index, value in enumerate(values)]


def test_bars_have_the_height_of_their_numbers() -> None:
    """The highest line is a round number, and spans without a number have no bar."""
    chart = count_chart("x", "Things", _spans("n", [0, 30, 15, 0]), "n")
    assert (chart.top, chart.middle, chart.total, chart.width) == ("50", "25", "45", 4)
    assert [(bar.y, bar.height) for bar in chart.bars] == [(40.0, 60.0), (70.0, 30.0)]


@pytest.mark.parametrize(("number", "top"), [(0, "1"), (1, "1"), (2, "2"), (3, "5"), (51, "100"), (1001, "2,000")])
def test_scales_are_round(number: int, top: str) -> None:
    """The top of a scale is one, two or five times a power of ten."""
    assert count_chart("x", "Things", _spans("n", [number]), "n").top == top


def test_lines_have_gaps() -> None:
    """Where nothing was measured, a line has a gap; a lone value is a short line."""
    chart = time_chart("x", "Time", _spans("high", [None, 1000, None, 500, 1000]), "low", "high")
    assert chart.lines[0].path == "M1.1 0.0h0.8M3.5 50.0L4.5 0.0"
    assert chart.top == "1.0 ms"


def test_charts_without_values() -> None:
    """A chart of nothing is empty."""
    chart = time_chart("x", "Time", _spans("high", [None, None]), "low", "high")
    assert [line.path for line in chart.lines] == ["", ""]

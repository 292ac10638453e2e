"""The plots of the benchmark report, drawn for real."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tests.support.benchmarks import benchmark_module, recorded


def texts(path: Path) -> list[str]:
    """Return the texts of an SVG file."""
    tree = ElementTree.parse(path)
    return ["".join(element.itertext()).strip() for element in tree.iter("{http://www.w3.org/2000/svg}text")]


def test_a_plot_has_the_names_and_figures_for_both_schemes(tmp_path: Path) -> None:
    """Both files are SVG with the titles, names, units and medians as texts, in different colours."""
    light, dark = benchmark_module("plots").draw("speed", recorded().tables, tmp_path)

    assert (light.name, dark.name) == ("speed-light.svg", "speed-dark.svg")
    assert {"Executed", "ours", "a peer", "tasks/s", "1,000", "500", "Idle", "% of a CPU", "0.25"} <= set(texts(light))
    assert texts(light) == texts(dark)
    assert light.read_text() != dark.read_text()


def test_the_same_results_give_the_same_plots(tmp_path: Path) -> None:
    """A plot has no date and no random names, so a version control shows only real changes."""
    again = tmp_path / "again"
    again.mkdir()

    first, _ = benchmark_module("plots").draw("speed", recorded().tables, tmp_path)
    second, _ = benchmark_module("plots").draw("speed", recorded().tables, again)
    assert first.read_bytes() == second.read_bytes()


def test_values_far_apart_have_a_logarithmic_axis(tmp_path: Path) -> None:
    """If the largest value is more than 50 times the smallest, the axis is logarithmic and says so."""
    recording = benchmark_module("recording").Recording()
    recording.table("Wide", "ms", {"slow": [900.0, 1000.0], "fast": [1.0, 1.1]})

    light, _ = benchmark_module("plots").draw("wide", recording.tables, tmp_path)
    assert "ms (logarithmic)" in texts(light)

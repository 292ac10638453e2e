"""The benchmark report: the page of the manual says what was measured, and nothing else."""

from __future__ import annotations

import json
import re
import sys

import docutils.core
import pytest

from tests.support.benchmarks import benchmark_module, recorded
from tests.support.repository import ROOT

PAGE = ROOT / "docs" / "benchmarks.rst"
RESULTS = ROOT / "docs" / "benchmarks" / "results.json"
TEMPLATE = "Before\n\n.. results: speed\n\nold\n\n.. end of results\n\nAfter\n"


def filled_with(recording: object, status: int = 0) -> str:
    """Return the template with the results of one script."""
    run = {"status": status, "seconds": 1.0, "recording": recording}
    return str(benchmark_module("report").filled(TEMPLATE, {"scripts": {"speed": run}}))


def test_the_page_shows_the_results_that_are_kept() -> None:
    """The page's tables are those of the file beside it, and each script that was run has a part."""
    report, results = benchmark_module("report"), json.loads(RESULTS.read_text())

    assert report.filled(PAGE.read_text(), results) == PAGE.read_text()
    assert set(report.parts(PAGE.read_text())) == {"machine", *benchmark_module("run_all").SCRIPTS}
    assert set(results["scripts"]) == set(benchmark_module("run_all").SCRIPTS)


def test_each_plot_is_there_for_both_schemes() -> None:
    """The page has a plot of each measured script, one for light and one for dark pages, with the same figures."""
    report, results = benchmark_module("report"), json.loads(RESULTS.read_text())
    measured = [name for name, run in results["scripts"].items() if run["recording"] is not None]

    assert measured
    for name in measured:
        medians = [
            benchmark_module("recording").amount(row["median"])
            for table in results["scripts"][name]["recording"]["tables"]
            for row in table["rows"]
        ]
        for scheme in ("light", "dark"):
            path = RESULTS.with_name(f"{report.file_name(name)}-{scheme}.svg")
            shown = re.findall(r">\s*([^<]+?)\s*</text>", path.read_text())
            assert [median for median in medians if median not in shown] == []
    assert len(list(RESULTS.parent.glob("*.svg"))) == 2 * len(measured)


def test_a_part_is_replaced_and_the_rest_of_the_page_stays() -> None:
    """What is between the comments is written anew; the text around it, and a second time, change nothing."""
    once = filled_with(recorded().as_json())

    assert once.startswith("Before\n\n.. results: speed\n\n")
    assert once.endswith("\n\n.. end of results\n\nAfter\n")
    assert "old" not in once
    run = {"status": 0, "seconds": 1.0, "recording": recorded().as_json()}
    assert benchmark_module("report").filled(once, {"scripts": {"speed": run}}) == once


def test_the_tables_have_medians_quartiles_and_ratios() -> None:
    """Each row has its median with the unit, its quartiles, its samples and its ratio; one sample has no quartiles."""
    text = filled_with(recorded().as_json())

    cells = [line.strip(" *-") for line in text.splitlines()]
    row = cells.index("a peer")
    assert cells[row : row + 5] == ["a peer", "500 tasks/s", "490 to 510", "3", "0.5"]
    row = cells.index("0.25 % of a CPU")
    assert cells[row : row + 3] == ["0.25 % of a CPU", "", "1"]
    document = text.replace(":class: only-", ":class: x-")
    docutils.core.publish_string(document, writer="null", settings_overrides={"halt_level": 2, "report_level": 2})


def test_a_missed_goal_and_a_missing_peer_are_shown() -> None:
    """The report hides neither a goal that was missed nor a peer that was not measured."""
    cells = [line.strip(" *-") for line in filled_with(recorded().as_json()).splitlines()]

    row = cells.index("executed, against a peer")
    assert cells[row : row + 4] == ["executed, against a peer", "at least 2.5 times as many", "2", "no"]
    row = cells.index("idle")
    assert cells[row : row + 4] == ["idle", "at most 1 %", "0.25", "yes"]
    assert "another peer is left out: redis-server is not installed." in cells


def test_a_script_that_failed_is_shown() -> None:
    """A part without results says so, in place of older figures."""
    assert "This benchmark failed or was left out in this run." in filled_with(None, status=-1)


def test_a_recording_can_be_read_back() -> None:
    """What a script has written is what the report reads; the status says whether a goal was missed."""
    kept = json.loads(json.dumps(recorded().as_json()))

    again = benchmark_module("recording").Recording.from_json(kept)
    assert (again.tables, again.goals, again.left_out) == (recorded().tables, recorded().goals, recorded().left_out)
    assert again.end(None) == 1
    again.goals.pop(0)
    assert again.end(None) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.12345, "0.123"), (1.005, "1"), (2.5, "2.5"), (12.345, "12.3"), (1234.5, "1,234"), (1e6, "1,000,000")],
)
def test_numbers_have_about_three_digits(value: float, text: str) -> None:
    """A number on the page has the digits that can be trusted."""
    assert benchmark_module("recording").amount(value) == text
    assert benchmark_module("recording").amount(value, "ms") == f"{text} ms"


def test_a_quick_run_measures_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--quick`` changes each number that was not given."""
    arguments = benchmark_module("recording").Arguments("About.", rounds=(60, 6), seconds=(3.0, 0.5))

    monkeypatch.setattr(sys, "argv", ["script", "--quick", "--seconds", "2"])
    assert vars(arguments.parse()) == {"json": None, "quick": True, "rounds": 6, "seconds": 2.0}
    monkeypatch.setattr(sys, "argv", ["script"])
    assert vars(arguments.parse()) == {"json": None, "quick": False, "rounds": 60, "seconds": 3.0}


def test_the_kept_results_have_five_digits() -> None:
    """Numbers are kept with five digits, so that two runs differ where they matter."""
    rounded = benchmark_module("run_all").rounded

    assert rounded({"rows": [{"median": 1234.56789, "samples": 3, "name": "x"}]}) == {
        "rows": [{"median": 1234.6, "samples": 3, "name": "x"}]
    }

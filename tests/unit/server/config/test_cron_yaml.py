"""cron.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from deferred_middleware.server.config.cron_yaml import CronYamlError, find_cron_yaml, read_cron_yaml

TEXT = """cron:
- description: clean up
  url: /tasks/clean
  schedule: every day 03:30
  timezone: Europe/Berlin
  target: background
  retry_parameters:
    job_retry_limit: 3
- url: /tasks/odd
  schedule: now and then
"""


def test_entries_are_read(tmp_path: Path) -> None:
    """Each entry has its line; a wrong schedule is a problem of its own entry only."""
    path = tmp_path / "cron.yaml"
    path.write_text(TEXT)
    good, odd = read_cron_yaml(path)
    assert (good.number, good.line, good.url, good.target) == (0, 2, "/tasks/clean", "background")
    assert (good.text, good.timezone, good.description) == ("every day 03:30", "Europe/Berlin", "clean up")
    assert good.schedule is not None
    assert (odd.line, odd.schedule, odd.timezone) == (9, None, "UTC")
    assert odd.problem is not None
    assert "now and then" in odd.problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cron:\n- url: nowhere\n  schedule: every day 09:00\n", "line 2"),
        ("cron:\n- url: /x\n  shedule: every day 09:00\n", "shedule"),
        ("cron: [", "not YAML"),
        ("cron:\n- url: /x\n  timezone: Mars\n  schedule: every day 09:00\n", "Mars"),
    ],
)
def test_a_wrong_file_is_an_error_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    """The error names the file, and what is wrong."""
    path = tmp_path / "cron.yaml"
    path.write_text(text)
    with pytest.raises(CronYamlError, match=problem):
        read_cron_yaml(path)


@pytest.mark.parametrize("text", ["", "cron:\n"])
def test_an_empty_file_has_no_entries(tmp_path: Path, text: str) -> None:
    """A file without entries is not wrong."""
    path = tmp_path / "cron.yaml"
    path.write_text(text)
    assert read_cron_yaml(path) == []


def test_the_first_file_is_found(tmp_path: Path) -> None:
    """The directories are searched in their order."""
    other = tmp_path / "other"
    other.mkdir()
    assert find_cron_yaml((tmp_path, other)) is None
    (other / "cron.yml").write_text("cron:\n")
    assert find_cron_yaml((tmp_path, other)) == other / "cron.yml"

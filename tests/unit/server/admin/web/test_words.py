"""Numbers, times and texts as the pages show them."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from deferred_middleware.server.admin.web import words
from deferred_middleware.server.store.records import RetryPolicy


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("gpj\u202egpj.exe", "gpj\\u202egpj.exe"),
        ("zero\u200bwidth", "zero\\u200bwidth"),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("tag \U000e0041", "tag \\U000e0041"),
        ("Grüße 日本 🙂", "Grüße 日本 🙂"),
        (42, "42"),
    ],
)
def test_nothing_is_invisible(text: object, shown: str) -> None:
    """What a browser would not show, or would show elsewhere, is shown as its escape."""
    assert words.visible(text) == shown


@given(st.text(st.characters()))
def test_every_text_can_be_sent(text: str) -> None:
    """Whatever a text has, the result can be encoded, and has no character that changes the direction of others."""
    shown = str(words.visible(text))

    shown.encode("utf-8")
    assert not any(0x202A <= ord(character) <= 0x202E for character in shown)


def test_markup_is_left_alone() -> None:
    """What is markup already stays so."""
    assert words.visible(Markup("<b>x</b>")) == Markup("<b>x</b>")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"),
        (0.25, "250 ms"),
        (1.25, "1.2 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7200, "2 h"),
        (172800, "2 d"),
    ],
)
def test_a_duration_has_one_unit(seconds: float, text: str) -> None:
    """A duration is shown in the largest unit of which it has at least two."""
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("offset", "text"), [(0, "now"), (5, "in 5 s"), (-5, "5 s ago"), (-200, "3 min ago"), (90_000, "in 25 h")]
)
def test_a_moment_is_relative_to_now(offset: float, text: str) -> None:
    """A time is shown by its distance."""
    assert words.relative(int(1e6 * (1000 + offset)), 1000) == text


@pytest.mark.parametrize("usec", [-(2**62), 2**62, 0])
def test_any_stored_time_can_be_shown(usec: int) -> None:
    """A time that no calendar has is shown all the same."""
    assert words.clock(usec)
    assert words.moment(usec)


def test_plurals_and_absent_values() -> None:
    """One thing is singular, and an absent value is a dash."""
    assert words.plural(1, "task") == "1 task"
    assert words.plural(2000, "entry", "entries") == "2,000 entries"
    assert words.number(None) == words.duration(None) == words.clock(None) == str(words.moment(None)) == words.NOTHING
    assert words.number(1234567) == "1,234,567"
    assert words.moment(int(time.time() * 1e6)).count("now") == 1


@pytest.mark.parametrize(
    ("task", "word"),
    [
        ({"state": "running"}, "running"),
        ({"state": "ready", "eta_usec": 0, "method": "POST", "retry_count": 2}, "waiting"),
        ({"state": "ready", "eta_usec": 2**61, "method": "POST", "retry_count": 2}, "retrying"),
        ({"state": "ready", "eta_usec": 2**61, "method": "POST", "retry_count": 0}, "scheduled"),
        ({"state": "ready", "eta_usec": 2**61, "method": "PULL", "retry_count": 1}, "leased"),
        ({"state": "ready", "eta_usec": 0, "method": "PULL", "retry_count": 1}, "leasable"),
    ],
)
def test_a_state_is_a_word(task: dict[str, object], word: str) -> None:
    """A ready task is called by what it waits for."""
    assert words.phase(task) == word


@pytest.mark.parametrize(("name", "chosen"), [("0" * 20, False), ("a1" * 16, False), ("order-12", True), ("12", True)])
def test_names_that_nobody_chose_are_told_apart(name: str, chosen: bool) -> None:
    """The names that the store and the package choose are not worth showing."""
    assert words.is_chosen(name) is chosen


def test_an_address_is_one_part_of_a_path() -> None:
    """A slash in a name does not begin another part."""
    assert words.address("a/b?c") == "a%2Fb%3Fc"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "without a limit, after 100 ms to 60 min, doubled up to 16 times"),
        ({"retry_limit": 1, "max_doublings": 1}, "at most 1 retry, after 100 ms to 60 min, doubled up to 1 time"),
        (
            {"retry_limit": 3, "age_limit_seconds": 86400.0 * 2},
            "at most 3 retries and for 2 d, after 100 ms to 60 min, doubled up to 16 times",
        ),
    ],
)
def test_a_retry_policy_is_in_words(changes: dict[str, Any], text: str) -> None:
    """Its limits, its times, and how they grow."""
    assert words.retries(dataclasses.asdict(RetryPolicy(**changes))) == text

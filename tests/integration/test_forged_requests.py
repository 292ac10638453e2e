"""Every combination of a request's properties, in process: exactly the task queue's own requests run."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest

from tests.support import sample
from tests.support.corpus import (
    BAD_SIGNATURES,
    IRRELEVANT,
    METHODS,
    NAMES,
    PLACES,
    QUEUES,
    SENDERS,
    SERVERS,
    SIGNATURES,
    USER_IPS,
    Case,
    app_at,
    legitimate,
    request,
)
from tests.support.watching import watch


@pytest.mark.parametrize("place", PLACES)
def test_exactly_the_task_queues_requests_run(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The requests that the oracle calls legitimate run; every other one gets a 4xx, and its body is not read."""
    monkeypatch.setattr(logging.getLogger("deferred_middleware"), "disabled", True)
    app = app_at(place)
    statuses: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        statuses.append(status)

    wrong: list[object] = []
    ran = refused = 0
    choices = (SENDERS, SERVERS, NAMES, QUEUES, USER_IPS, [*SIGNATURES, *BAD_SIGNATURES], METHODS)
    for chosen in itertools.product(*choices):
        case = Case(place, *chosen)
        expected = legitimate(case)
        for irrelevant in IRRELEVANT:
            environ = request(case, irrelevant)
            with watch() as seen:
                app(environ, start_response)
            status = statuses.pop()
            if bool(sample.ran) != expected or status[0] != ("2" if expected else "4"):
                wrong.append((case, irrelevant, status, bool(sample.ran)))
            if seen and not expected:
                wrong.append((case, irrelevant, seen))
            ran, refused = ran + expected, refused + (not expected)
            sample.ran.clear()

    assert wrong[:5] == []
    assert (ran > 0, refused > 20 * ran) == (True, True)
    assert ran + refused == 4 * 2 * 4 * 4 * 3 * 15 * 2 * 4

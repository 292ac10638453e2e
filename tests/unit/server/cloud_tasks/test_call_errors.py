"""The errors of the API."""

from __future__ import annotations

import datetime
import zoneinfo

import grpc
import pytest

from deferred_middleware.server.cloud_tasks.call_errors import HTTP_STATUS, RpcCode, pacific


@pytest.mark.parametrize("code", RpcCode)
def test_codes_are_those_of_grpc(code: RpcCode) -> None:
    """Each code has gRPC's number and name, and an HTTP status."""
    assert grpc.StatusCode[code.name].value[0] == code.value
    assert 400 <= HTTP_STATUS[code] < 600


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        ("2100-01-01T00:00:00+00:00", "2099-12-31T16:00:00-08:00"),
        ("2026-07-01T12:00:00.500000+00:00", "2026-07-01T05:00:00.500000-07:00"),
    ],
)
def test_times_are_those_of_the_services_home(moment: str, text: str) -> None:
    """A message has the time of California, with its summer time."""
    assert pacific(datetime.datetime.fromisoformat(moment)) == text


def test_times_without_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without time zones uses the winter's."""

    def missing(name: str) -> None:
        raise zoneinfo.ZoneInfoNotFoundError(name)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", missing)
    assert pacific(datetime.datetime(2026, 7, 1, tzinfo=datetime.timezone.utc)) == "2026-06-30T16:00:00-08:00"

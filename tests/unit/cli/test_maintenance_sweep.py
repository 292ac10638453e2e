"""Tests of the command that removes expired payloads."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pytest
from google.appengine.api import datastore
from google.appengine.ext import testbed

from deferred_middleware.cli.main import main
from deferred_middleware.wire import overflow


@pytest.fixture
def bed() -> Iterator[testbed.Testbed]:
    """The SDK's datastore stub."""
    bed = testbed.Testbed()
    bed.activate()
    bed.init_datastore_v3_stub()
    yield bed
    bed.deactivate()


def put(name: str, *, days: int) -> None:
    """Put an entity like the ones that payloads leave, which expires in ``days`` days."""
    entity = datastore.Entity(overflow.KIND, name=name, namespace="")
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    entity[overflow.EXPIRES] = now + datetime.timedelta(days=days)
    datastore.Put(entity)


def test_what_has_expired_is_removed(bed: testbed.Testbed, capsys: pytest.CaptureFixture[str]) -> None:
    """The command removes expired payloads, keeps the others, and prints the number."""
    put("old", days=-1)
    put("older", days=-40)
    put("new", days=1)

    assert main(["sweep"]) == 0

    assert capsys.readouterr().out == "2 expired entities removed.\n"
    assert [entity.key().name() for entity in datastore.Query(overflow.KIND, namespace="").Run()] == ["new"]


def test_without_a_datastore_it_says_what_to_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside an app, the error is one sentence that names the variables to set."""
    monkeypatch.delenv("API_HOST", raising=False)

    assert main(["sweep"]) == 1

    assert "API_HOST" in capsys.readouterr().err

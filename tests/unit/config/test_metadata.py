"""Tests of what the metadata server tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from deferred_middleware import Settings
from deferred_middleware.config import metadata
from deferred_middleware.config.process import Deployment, application_of, keyring_of
from deferred_middleware.errors import LocationError
from tests.support.metadata_server import MetadataServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[MetadataServer]:
    """Run a metadata server."""
    metadata.forget()
    with MetadataServer() as server:
        monkeypatch.setenv(metadata.HOST_VARIABLE, server.host)
        yield server
    metadata.forget()


def test_it_tells_each_fact_once(server: MetadataServer) -> None:
    """The project, the region and the account are asked for once; a region has no project before it."""
    for _ in range(3):
        assert metadata.ask(metadata.PROJECT) == "shop"
        assert metadata.ask(metadata.REGION) == "europe-west1"
        assert metadata.ask(metadata.SERVICE_ACCOUNT) == "runner@shop.iam.gserviceaccount.com"

    assert len(server.asked) == 3


def test_what_it_does_not_know_is_none(server: MetadataServer) -> None:
    """A fact without a value is None, and is asked for again."""
    del server.values[metadata.SERVICE_ACCOUNT]

    assert metadata.ask(metadata.SERVICE_ACCOUNT) is None
    server.values[metadata.SERVICE_ACCOUNT] = "a@b.c"
    assert metadata.ask(metadata.SERVICE_ACCOUNT) == "a@b.c"


def test_without_a_server_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing says that there is such a server, a fact that is not needed is not asked for."""
    for name in (metadata.HOST_VARIABLE, "K_SERVICE", "GAE_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(metadata, "_ask", lambda *_: pytest.fail("it was asked"))

    assert metadata.ask_on_google(metadata.SERVICE_ACCOUNT) is None


def test_cloud_runs_signatures_name_the_project(server: MetadataServer) -> None:
    """On Cloud Run, where no variable has the project, signatures name the one that the metadata server tells."""
    on_cloud_run = Deployment(cloud_run_service="shop")

    assert application_of(on_cloud_run) == "shop"
    assert application_of(Deployment(application="other", cloud_run_service="shop")) == "other"
    assert application_of(Deployment()) == ""


def test_an_unknown_project_is_an_error_on_cloud_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the project can't be found out, a process with keys doesn't start, instead of refusing all tasks."""
    metadata.forget()
    monkeypatch.setenv(metadata.HOST_VARIABLE, "127.0.0.1:9")
    on_cloud_run = Deployment(cloud_run_service="shop")

    with pytest.raises(LocationError, match="GOOGLE_CLOUD_PROJECT"):
        keyring_of(Settings(secret_keys=("k" * 32,)), on_cloud_run)  # type: ignore[arg-type]
    assert not keyring_of(Settings(secret_keys=()), on_cloud_run)

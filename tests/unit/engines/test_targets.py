"""Tests of HTTP targets: the URL, the token and the headers of a task, and what can't be sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from deferred_middleware import Settings, SettingsError, defer
from deferred_middleware.config import metadata, process
from deferred_middleware.config.process import Deployment, install_settings
from deferred_middleware.engines import current
from deferred_middleware.errors.sdk import InvalidDispatchDeadlineError, TargetError
from tests.support import sample
from tests.support.engines.apps import PARENT, QUEUES, environ_for
from tests.support.engines.cloudtasks import CloudTasks
from tests.support.metadata_server import MetadataServer

KEY = "k" * 32
URLS = {
    "default": "https://shop-123456.europe-west1.run.app",
    "background": "https://jobs-123456.europe-west1.run.app",
    "reports": "https://reports.example.com",
}
RUNNER = "runner@shop.iam.gserviceaccount.com"


@pytest.fixture(scope="module")
def server() -> Iterator[CloudTasks]:
    """Run a Cloud Tasks server."""
    with CloudTasks(PARENT, QUEUES) as server:
        yield server


@pytest.fixture
def cloud(server: CloudTasks, monkeypatch: pytest.MonkeyPatch) -> Iterator[CloudTasks]:
    """Run on Cloud Run, with a metadata server and a Cloud Tasks server."""
    metadata.forget()
    with MetadataServer() as facts:
        monkeypatch.setenv(metadata.HOST_VARIABLE, facts.host)
        monkeypatch.setenv("K_SERVICE", "shop")
        for name, value in environ_for(server).items():
            monkeypatch.setenv(name, value)
        for name in ("APPENGINE_USE_CLOUDTASK_PUSH_QUEUE", "GAE_APPLICATION"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(current, "_http_targets", None)
        run_as("shop")
        yield server
    server.reset()
    metadata.forget()


def run_as(cloud_run_service: str, **settings: Any) -> None:
    """Be a Cloud Run service."""
    process._deployment = Deployment.from_environ({"K_SERVICE": cloud_run_service, "K_REVISION": "shop-00001-abc"})
    given = {"engine": "cloud-tasks", "service_urls": URLS, "secret_keys": (KEY,), **settings}
    install_settings(Settings(**given))


def created(cloud: CloudTasks) -> Any:
    """Return the only task that was created."""
    (held,) = cloud.held()
    cloud.reset()
    return held.task


@pytest.mark.parametrize(
    ("service", "settings", "options", "url", "audience"),
    [
        ("shop", {}, {}, URLS["default"], URLS["default"]),
        ("shop", {"background_module": "background"}, {}, URLS["background"], URLS["background"]),
        ("jobs", {"background_module": "background"}, {}, URLS["background"], URLS["background"]),
        ("reports", {"background_module": "background"}, {}, URLS["reports"], URLS["reports"]),
        ("shop", {}, {"_target": "background"}, URLS["background"], URLS["background"]),
        (
            "shop",
            {},
            {"_target": "v2.background"},
            "https://v2---jobs-123456.europe-west1.run.app",
            URLS["background"],
        ),
        (
            "shop",
            {"background_module": "background", "background_version": "v2"},
            {},
            "https://v2---jobs-123456.europe-west1.run.app",
            URLS["background"],
        ),
        ("shop", {"background_module": "background", "background_version": "default"}, {}, URLS["background"], None),
        ("shop", {"audience": "tasks"}, {}, URLS["default"], "tasks"),
    ],
)
def test_a_target_is_a_url(
    cloud: CloudTasks, service: str, settings: Any, options: Any, url: str, audience: str | None
) -> None:
    """Own service, background module, versions and targets mean the same as on App Engine."""
    run_as(service, **settings)

    defer(sample.note, 1, **options)

    request = created(cloud).http_request
    assert request.url == f"{url}/_cb/deferred/tests.support.sample/note"
    assert request.oidc_token.service_account_email == RUNNER
    assert request.oidc_token.audience == (audience or url)
    assert "X-Deferred-Signature" in request.headers


def test_the_account_may_be_named(cloud: CloudTasks) -> None:
    """DEFERRED_SERVICE_ACCOUNT replaces the account of the process. Without keys the task has no signature."""
    run_as("shop", service_account="tasks@shop.iam.gserviceaccount.com", secret_keys=())

    defer(sample.note, 1)

    request = created(cloud).http_request
    assert request.oidc_token.service_account_email == "tasks@shop.iam.gserviceaccount.com"
    assert "X-Deferred-Signature" not in request.headers


def test_a_plain_deployment_names_the_url(cloud: CloudTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project and the region come from the metadata server if no variable has them."""
    for name in ("GOOGLE_CLOUD_PROJECT", "LOCATION_ID"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(Exception, match="projects/shop/locations/europe-west1"):
        defer(sample.note, 1)  # the test's server has another project


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("nowhere", "Add nowhere=https"),
        ("v2.reports", "Add v2.reports=https"),
        ("i1.v2.background", "no single instance"),
    ],
)
def test_a_target_without_a_url_is_an_error(cloud: CloudTasks, target: str, problem: str) -> None:
    """A service, a version off run.app or an instance that has no URL is an error that says what to add."""
    with pytest.raises(TargetError, match=problem):
        defer(sample.note, 1, _target=target)
    assert cloud.held() == []


def test_an_unclear_service_is_an_error(cloud: CloudTasks) -> None:
    """If it is not clear which service this is, tasks are not sent to another one."""
    run_as("somewhere-else")

    with pytest.raises(TargetError, match="GAE_SERVICE"):
        defer(sample.note, 1)


def test_a_deadline_of_more_than_half_an_hour_is_an_error(cloud: CloudTasks) -> None:
    """Cloud Tasks waits for a URL for half an hour at most."""
    defer(sample.note, 1, _deadline=1800)
    assert created(cloud).dispatch_deadline.total_seconds() == 1800

    with pytest.raises(InvalidDispatchDeadlineError, match="1,800"):
        defer(sample.note, 1, _deadline=1801)


def test_a_task_that_would_be_refused_is_not_sent(cloud: CloudTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without keys and without an account, defer() says that the task would be refused."""
    monkeypatch.delenv(metadata.HOST_VARIABLE)
    monkeypatch.delenv("K_SERVICE")
    run_as("shop", secret_keys=())

    with pytest.raises(SettingsError, match="DEFERRED_SERVICE_ACCOUNT"):
        defer(sample.note, 1)
    assert cloud.held() == []


def test_on_cloud_run_urls_are_needed(cloud: CloudTasks) -> None:
    """On Cloud Run, Cloud Tasks without URLs is an error: there is no App Engine app to which tasks could go."""
    run_as("shop", service_urls=())

    with pytest.raises(SettingsError, match="gcloud run services describe shop"):
        defer(sample.note, 1)

"""The calls about queues."""

from __future__ import annotations

from typing import Any

import pytest

from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError
from deferred_middleware.server.store.store import TaskStore
from tests.support.cloud_api import PARENT, QUEUE, Api
from tests.support.storing import Clock


@pytest.fixture
def api(store: TaskStore, clock: Clock) -> Api:
    """Return the API with one queue."""
    api = Api(store, clock)
    api.make_queue(rateLimits={"maxDispatchesPerSecond": 50}, retryConfig={"maxAttempts": 7, "maxBackoff": "60s"})
    return api


@pytest.mark.parametrize(
    ("mask", "changed"),
    [
        ("retryConfig.maxAttempts", {"maxAttempts": 3, "maxBackoff": "60s", "rate": 50}),
        ("retryConfig", {"maxAttempts": 3, "maxBackoff": "3600s", "rate": 50}),
        ("retryConfig.maxBackoff", {"maxAttempts": 7, "maxBackoff": "3600s", "rate": 50}),
        ("rateLimits.maxDispatchesPerSecond", {"maxAttempts": 7, "maxBackoff": "60s", "rate": 500}),
        ("rateLimits", {"maxAttempts": 7, "maxBackoff": "60s", "rate": 500}),
        ("retryConfig.maxAttempts,rateLimits", {"maxAttempts": 3, "maxBackoff": "60s", "rate": 500}),
        ("", {"maxAttempts": 3, "maxBackoff": "3600s", "rate": 500}),
        ("state,name,purgeTime,rateLimits.maxBurstSize", {"maxAttempts": 7, "maxBackoff": "60s", "rate": 50}),
    ],
)
def test_what_a_mask_names_is_replaced(api: Api, mask: str, changed: dict[str, Any]) -> None:
    """A field in the mask that the request leaves out has its default again; all others stay."""
    queue = {"name": QUEUE, "retryConfig": {"maxAttempts": 3}, "state": "PAUSED"}
    updated = api.call("UpdateQueue", {"queue": queue, "updateMask": mask})
    retry, limits = updated["retryConfig"], updated["rateLimits"]
    found = {
        "maxAttempts": retry["maxAttempts"], "maxBackoff": retry["maxBackoff"], "rate": limits["maxDispatchesPerSecond"]
    }  # fmt: skip
    assert found == changed
    assert updated["state"] == "RUNNING"
    assert api.call("GetQueue", {"name": QUEUE}) == updated


@pytest.mark.parametrize("paths", [["nothing"], ["rate_limits.nothing"], ["retry_config.max_attempts.x"], [""], ["*"]])
def test_a_mask_that_names_no_field(api: Api, paths: list[str]) -> None:
    """The error names the path."""
    method = api.method("UpdateQueue")
    request = method.request(queue={"name": QUEUE}, update_mask={"paths": paths})
    with pytest.raises(ApiCallError, match="Invalid field in the update mask"):
        method.call(request)


def test_an_update_that_is_refused_changes_nothing(api: Api) -> None:
    """The queue stays as it is, and is not made."""
    before = api.call("GetQueue", {"name": QUEUE})
    for name in (QUEUE, f"{PARENT}/queues/new"):
        with pytest.raises(ApiCallError, match="cannot be negative"):
            api.call("UpdateQueue", {"queue": {"name": name, "retryConfig": {"maxDoublings": -1}}})
    assert api.call("GetQueue", {"name": QUEUE}) == before
    with pytest.raises(ApiCallError, match="Queue does not exist"):
        api.call("GetQueue", {"name": f"{PARENT}/queues/new"})


def test_what_is_kept_of_a_queue(api: Api) -> None:
    """Overrides and the sampling of logs are kept as they were given."""
    settings = {
        "appEngineRoutingOverride": {"service": "worker", "version": "v1"},
        "stackdriverLoggingConfig": {"samplingRatio": 0.5},
        "httpTarget": {
            "uriOverride": {"host": "example.com", "port": "8080"},
            "headerOverrides": [{"header": {"key": "A", "value": "b"}}],
        },
    }
    api.call("UpdateQueue", {"queue": {"name": QUEUE, **settings}})
    shown = api.call("GetQueue", {"name": QUEUE})
    assert {name: shown[name] for name in settings} == settings
    assert api.registry["mail@europe-west1.my-project"].target == "v1.worker"


@pytest.mark.parametrize("token", ["!", "w7w"])
def test_a_page_token_that_is_none(api: Api, token: str) -> None:
    """The error says so."""
    with pytest.raises(ApiCallError, match="The page token is not valid"):
        api.call("ListQueues", {"parent": PARENT, "pageToken": token})
    with pytest.raises(ApiCallError, match="cannot be negative"):
        api.call("ListQueues", {"parent": PARENT, "pageSize": -1})


def test_a_location_is_shown(api: Api) -> None:
    """Any location is one; those of a project are where it has queues."""
    assert api.call("GetLocation", {"name": PARENT}) == {"name": PARENT, "locationId": "europe-west1"}
    listed = api.call("ListLocations", {"name": "projects/empty"})
    assert [location["locationId"] for location in listed["locations"]] == ["us-central1"]
    with pytest.raises(ApiCallError, match="Invalid resource field value"):
        api.call("ListLocations", {"name": "projects/a b"})


def test_pausing_wakes_the_scheduler(api: Api) -> None:
    """The scheduler hears of a pause and of its end."""
    assert api.call("PauseQueue", {"name": QUEUE})["state"] == "PAUSED"
    assert api.call("PauseQueue", {"name": QUEUE})["state"] == "PAUSED"
    assert api.call("ResumeQueue", {"name": QUEUE})["state"] == "RUNNING"
    assert api.wakes == 3

"""Queues of clients beside those of queue.yaml."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError
from deferred_middleware.server.config.queues import IMPLICIT_DEFAULT, QueueConfig, QueueRegistry
from deferred_middleware.server.store.records import RetryPolicy
from deferred_middleware.server.store.store import TaskStore
from tests.support.cloud_api import HOME, PARENT, QUEUE, Api
from tests.support.storing import DAY_USEC, Clock, new_task

LISTED = QueueConfig(name="mail", rate_per_second=5.0, retry=RetryPolicy(retry_limit=2), target="v1.worker")


@pytest.fixture
def api(store: TaskStore, clock: Clock) -> Api:
    """Return the API of an app whose queue.yaml lists the queue ``mail``."""
    return Api(store, clock, home=HOME, registry=QueueRegistry([LISTED, QueueConfig(name="leased", mode="pull")]))


def restarted(api: Api, clock: Clock, *listed: QueueConfig) -> Api:
    """Return the API after a restart with another queue.yaml."""
    return Api(api.store, clock, home=HOME, registry=QueueRegistry(listed))


def test_a_queue_of_queue_yaml(api: Api) -> None:
    """A client sees the entry of queue.yaml as a queue; pull queues are not shown."""
    shown = api.call("GetQueue", {"name": QUEUE})
    assert shown["rateLimits"] == {
        "maxDispatchesPerSecond": 5.0, "maxBurstSize": 5, "maxConcurrentDispatches": 1000
    }  # fmt: skip
    assert shown["retryConfig"]["maxAttempts"] == 3
    assert shown["appEngineRoutingOverride"] == {"service": "worker", "version": "v1"}
    listed = api.call("ListQueues", {"parent": PARENT})["queues"]
    assert [queue["name"].rpartition("/")[2] for queue in listed] == ["default", "mail"]
    with pytest.raises(ApiCallError, match="Queue does not exist"):
        api.call("GetQueue", {"name": f"{PARENT}/queues/leased"})


def test_an_update_holds_until_the_entry_changes(api: Api, clock: Clock) -> None:
    """UpdateQueue outlives a restart, but not another entry in queue.yaml."""
    api.call("UpdateQueue", {"queue": {"name": QUEUE, "rateLimits": {"maxDispatchesPerSecond": 50}}})
    assert api.registry["mail"].rate_per_second == 50
    again = restarted(api, clock, LISTED)
    assert again.registry["mail"].rate_per_second == 50
    again.registry.replace([LISTED, QueueConfig(name="other")])
    assert again.registry["mail"].rate_per_second == 50
    changed = QueueConfig(name="mail", rate_per_second=7.0)
    again.registry.replace([changed])
    assert again.registry["mail"] == changed
    # The old entry does not bring the update back.
    again.registry.replace([LISTED])
    assert again.registry["mail"] == LISTED
    assert restarted(again, clock, LISTED).registry["mail"] == LISTED


def test_an_entry_that_changed_while_the_server_was_down(api: Api, clock: Clock) -> None:
    """Another entry at the start replaces an update, for good."""
    api.call("UpdateQueue", {"queue": {"name": QUEUE, "rateLimits": {"maxDispatchesPerSecond": 50}}})
    changed = QueueConfig(name="mail", rate_per_second=7.0)
    assert restarted(api, clock, changed).registry["mail"] == changed
    assert restarted(api, clock, LISTED).registry["mail"] == LISTED


def test_a_deleted_queue_of_queue_yaml(api: Api, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """DeleteQueue takes the queue away with its tasks, until its entry changes."""
    api.store.add([new_task(queue="mail")])
    api.call("DeleteQueue", {"name": QUEUE})
    assert "mail" not in api.registry
    assert not api.store.queries.counts().get("mail", {}).get("ready")
    assert "not in the configuration any more" not in caplog.text
    again = restarted(api, clock, LISTED)
    assert "mail" not in again.registry
    with pytest.raises(ApiCallError, match="existed too recently"):
        again.make_queue()
    again.registry.replace([QueueConfig(name="mail")])
    assert "mail" in again.registry


def test_the_name_of_a_deleted_queue_is_free_after_a_week(api: Api, clock: Clock) -> None:
    """A queue can be made anew when its name is not taken any more."""
    name = f"{PARENT}/queues/made"
    api.make_queue(name)
    api.call("DeleteQueue", {"name": name})
    clock.usec += 7 * DAY_USEC - 2_000_000
    with pytest.raises(ApiCallError, match="existed too recently"):
        api.make_queue(name)
    clock.usec += 3_000_000
    api.make_queue(name)


def test_a_queue_elsewhere_is_another_one(api: Api) -> None:
    """The same ID in another location or project is another queue, with its own tasks."""
    other = "projects/my-project/locations/us-central1/queues/mail"
    with pytest.raises(ApiCallError, match="Queue does not exist"):
        api.call("GetQueue", {"name": other})
    api.make_queue(other)
    api.make_task(other)
    assert "tasks" not in api.call("ListTasks", {"parent": QUEUE})
    assert set(api.registry) == {"default", "leased", "mail", "mail@us-central1.my-project"}
    locations = api.call("ListLocations", {"name": "projects/my-project"})["locations"]
    assert [location["locationId"] for location in locations] == ["europe-west1", "us-central1"]


def test_without_an_app_the_default_queue_is_hidden(store: TaskStore, clock: Clock) -> None:
    """An emulator shows only what clients have made."""
    api = Api(store, clock)
    assert api.registry["default"] is IMPLICIT_DEFAULT
    assert api.call("ListQueues", {"parent": PARENT}) == {}
    name = f"{PARENT}/queues/default"
    api.make_queue(name)
    assert [queue["name"] for queue in api.call("ListQueues", {"parent": PARENT})["queues"]] == [name]


def test_a_reset_forgets_queues(api: Api, clock: Clock) -> None:
    """After a reset only queue.yaml counts, and every name is free."""
    api.call("UpdateQueue", {"queue": {"name": QUEUE, "rateLimits": {"maxDispatchesPerSecond": 50}}})
    api.make_queue(f"{PARENT}/queues/made")
    api.make_queue(f"{PARENT}/queues/gone")
    api.call("DeleteQueue", {"name": f"{PARENT}/queues/gone"})
    api.queues.reset()
    assert api.registry["mail"] == LISTED
    assert set(api.registry) == {"default", "leased", "mail"}
    api.make_queue(f"{PARENT}/queues/gone")
    assert set(restarted(api, clock, LISTED).registry) == {"default", "gone", "mail"}


def test_a_purge_of_a_queue_of_queue_yaml_keeps_its_entry(api: Api, clock: Clock) -> None:
    """The time of a purge is kept, and the queue follows queue.yaml as before."""
    assert "purgeTime" in api.call("PurgeQueue", {"name": QUEUE})
    again = restarted(api, clock, QueueConfig(name="mail", rate_per_second=7.0))
    shown = again.call("GetQueue", {"name": QUEUE})
    assert shown["rateLimits"]["maxDispatchesPerSecond"] == 7.0
    assert "purgeTime" in shown


@pytest.mark.parametrize("rate", [0.0, 5.0])
def test_a_paused_entry(store: TaskStore, clock: Clock, rate: float) -> None:
    """A queue with the rate 0 in queue.yaml is a paused one."""
    api = Api(store, clock, home=HOME, registry=QueueRegistry([QueueConfig(name="mail", rate_per_second=rate)]))
    assert api.call("GetQueue", {"name": QUEUE})["state"] == ("RUNNING" if rate else "PAUSED")


def test_the_registry_tells_of_each_change(api: Api) -> None:
    """The scheduler hears of queues that clients make, change and delete."""
    changes: list[frozenset[str]] = []
    tell: Callable[[], None] = lambda: changes.append(frozenset(api.registry))  # noqa: E731
    api.registry.on_change(tell)
    name = f"{PARENT}/queues/made"
    api.make_queue(name)
    api.call("UpdateQueue", {"queue": {"name": name, "rateLimits": {"maxDispatchesPerSecond": 5}}})
    api.call("DeleteQueue", {"name": name})
    assert ["made" in change for change in changes] == [True, True, False]


def test_a_damaged_row_is_an_error(api: Api, clock: Clock, tmp_path: Path) -> None:
    """Settings that can't be read are not ignored."""
    api.store.saved_queues.save("made", "no JSON", None)
    with pytest.raises(Exception, match="Failed to load JSON"):
        restarted(api, clock)

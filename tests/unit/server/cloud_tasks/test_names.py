"""The names of the API's resources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.cloud_tasks.call_errors import ApiCallError, RpcCode
from deferred_middleware.server.cloud_tasks.names import (
    Home,
    QueuePath,
    StoreNames,
    parse_location,
    parse_task_name,
)

HOME = Home(project="my-project", location="europe-west1")
LOCATION = "projects/p/locations/us-central1"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "Queue name must be formatted"),
        ("mail", "Queue name must be formatted"),
        ("projects/p/queues/mail", "Queue name must be formatted"),
        (f"{LOCATION}/queues/mail/tasks/a", "Queue name must be formatted"),
        (f"{LOCATION}/queues/mail\n", 'Queue ID "mail\n" can contain only letters'),
        (f"{LOCATION}/queues/", 'Queue ID "" can contain only letters'),
        (f"{LOCATION}/queues/a_b", 'Queue ID "a_b" can contain only letters'),
        (f"{LOCATION}/queues/{'q' * 101}", f'Queue ID "{"q" * 101}" can contain'),
        ("projects/p/locations/-/queues/mail", "Location '-' is not a valid location."),
        ("projects/p q/locations/us-central1/queues/mail", "Queue name must be formatted"),
        (f"projects/{'p' * 300}/locations/us-central1/queues/mail", "Invalid resource field value"),
    ],
)
def test_a_name_that_is_no_queues(name: str, message: str) -> None:
    """The error says what is wrong, in the service's words."""
    with pytest.raises(ApiCallError) as caught:
        QueuePath.parse(name)
    assert caught.value.code is RpcCode.INVALID_ARGUMENT
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one", "Task name must be formatted"),
        (f"{LOCATION}/queues/mail/tasks/", 'Task ID "" can contain only letters'),
        (f"{LOCATION}/queues/mail/tasks/a b", 'Task ID "a b" can contain only letters'),
        (f"{LOCATION}/queues/mail/tasks/a\n", 'Task ID "a\n" can contain only letters'),
        (f"{LOCATION}/queues/mail/tasks/{'t' * 501}", 'Task ID "ttt'),
        (f"{LOCATION}/queues/a_b/tasks/one", 'Queue ID "a_b" can contain only letters'),
    ],
)
def test_a_name_that_is_no_tasks(name: str, message: str) -> None:
    """The ID of a task is checked, and that of its queue."""
    with pytest.raises(ApiCallError) as caught:
        parse_task_name(name)
    assert caught.value.message.startswith(message)


def test_a_task_name() -> None:
    """The name of a task is that of its queue and its ID."""
    path, task_id = parse_task_name("projects/example.com:app-1/locations/us-central1/queues/Mail-2/tasks/a_B-3")
    assert path == QueuePath(project="example.com:app-1", location="us-central1", queue="Mail-2")
    assert task_id == "a_B-3"
    assert path.task(task_id) == "projects/example.com:app-1/locations/us-central1/queues/Mail-2/tasks/a_B-3"


def test_a_location() -> None:
    """A location has a project."""
    assert parse_location(HOME.name) == HOME
    with pytest.raises(ApiCallError, match="Invalid resource field value in the request"):
        parse_location("projects/p")


def test_queues_of_the_served_app_have_short_names() -> None:
    """A queue at home has its own ID in the store; without a home, no queue has."""
    path = QueuePath(project="my-project", location="europe-west1", queue="mail")
    assert StoreNames(HOME).of(path) == "mail"
    assert StoreNames(None).of(path) == "mail@europe-west1.my-project"
    assert StoreNames(None).path_of("mail") is None


IDS = st.from_regex(r"[A-Za-z0-9-]{1,30}", fullmatch=True)


@given(
    project=st.from_regex(r"[A-Za-z0-9:.-]{1,30}", fullmatch=True),
    location=st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True),
    queue=IDS,
    at_home=st.booleans(),
)
def test_the_stores_name_leads_back(project: str, location: str, queue: str, at_home: bool) -> None:
    """Each queue has one name in the store, from which its full name is found."""
    path = QueuePath.parse(f"projects/{project}/locations/{location}/queues/{queue}")
    names = StoreNames(HOME if at_home else None)
    assert names.path_of(names.of(path)) == path

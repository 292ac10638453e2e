"""Tests of the advice about an answer of Cloud Tasks: it names the command that helps."""

from __future__ import annotations

import pytest

from deferred_middleware.config import metadata
from deferred_middleware.engines import advice

QUEUE = "projects/shop/locations/europe-west1/queues/mail"


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a process with a service account."""
    monkeypatch.setattr(metadata, "ask_on_google", lambda name: "me@shop.iam.gserviceaccount.com")


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        (5, "Queue does not exist.", "`gcloud tasks queues create mail --location=europe-west1 --project=shop`"),
        (5, "Requested entity was not found.", "queue mail doesn't exist in europe-west1"),
        (7, 'The principal lacks IAM permission "cloudtasks.tasks.create"', "--role=roles/cloudtasks.enqueuer"),
        (7, "permission iam.serviceAccounts.actAs is needed", "--role=roles/iam.serviceAccountUser"),
        (7, "Cloud Tasks API has not been used in project 1 before", "gcloud services enable cloudtasks"),
        (16, "Request had invalid authentication credentials", "--role=roles/cloudtasks.enqueuer"),
        (3, "Location 'europe-west9' is not a valid location.", "Set LOCATION_ID"),
        (5, "Location europe-west9 is not found or access is unauthorized.", "gcloud tasks locations list"),
    ],
)
def test_the_advice_names_the_command(status: int, message: str, expected: str) -> None:
    """An unknown queue, a missing permission, an API that is off and a wrong region each have their command."""
    assert expected in (advice.for_status(status, message, QUEUE) or "")


def test_a_queue_of_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gcloud makes no queue in an emulator; its own command does."""
    monkeypatch.setenv("CLOUD_TASKS_EMULATOR_HOST", "localhost:8123")

    told = advice.for_status(5, "Queue does not exist.", QUEUE) or ""

    assert "the emulator at localhost:8123" in told
    assert f"`deferred-middleware emulate --queue {QUEUE}`" in told
    assert "gcloud" not in told


@pytest.mark.parametrize("status", [1, 2, 3, 4, 6, 8, 13, 14])
def test_nothing_is_made_up(status: int) -> None:
    """Other answers have no advice."""
    assert advice.for_status(status, "as told", QUEUE) is None

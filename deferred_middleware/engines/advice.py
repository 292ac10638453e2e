"""What to do about an answer of Cloud Tasks, as the commands of gcloud that do it."""

from __future__ import annotations

import re
from typing import Final

from deferred_middleware.config import metadata
from deferred_middleware.config.process import current_settings
from deferred_middleware.engines.location import EMULATOR_VARIABLE, emulator_address

_QUEUE: Final = re.compile(r"projects/([^/]+)/locations/([^/]+)/queues/([^/]+)")
_NOT_FOUND: Final = 5
_PERMISSION_DENIED: Final = 7
_FAILED_PRECONDITION: Final = 9
_INVALID_ARGUMENT: Final = 3
_UNAUTHENTICATED: Final = 16

NO_CREDENTIALS: Final = (
    "Cloud Tasks was not asked, because this process has no credentials. On Google Cloud, let the service run as a "
    "service account. On your machine, run `gcloud auth application-default login`, or set CLOUD_TASKS_EMULATOR_HOST "
    "to the address of an emulator."
)


def for_status(status: int, message: str, queue_path: str) -> str | None:
    """Return what a status of a call for a queue means and what to do about it; None if nothing is known.

    ``message`` is the text of the status. It follows the returned sentence in the error.
    """
    found = _QUEUE.fullmatch(queue_path)
    if found is None:
        return None
    project, region, queue = found.groups()
    where = f"--location={region} --project={project}"
    lower = message.lower()
    if status in (_INVALID_ARGUMENT, _NOT_FOUND, _PERMISSION_DENIED) and "location" in lower:
        return (
            f"Cloud Tasks has no queues of project {project} in {region}. Set LOCATION_ID to the region of the queues; "
            f"`gcloud tasks locations list --project={project}` lists the regions."
        )
    if status == _NOT_FOUND and emulator_address():
        return (
            f"the emulator at {emulator_address()} ({EMULATOR_VARIABLE}) has no queue {queue} in {region} "
            f"(project {project}): start it with `deferred-middleware emulate --queue {queue_path}`, or have a client "
            "call CreateQueue."
        )
    if status == _NOT_FOUND:
        return (
            f"queue {queue} doesn't exist in {region} (project {project}): run `gcloud tasks queues create {queue} "
            f"{where}`, or set LOCATION_ID if the queue is in another region. On App Engine you can also declare it in "
            "queue.yaml and deploy that file. A new queue may take a minute to be found."
        )
    if status in (_PERMISSION_DENIED, _UNAUTHENTICATED):
        return _for_permission(lower, queue, where, project)
    if status == _FAILED_PRECONDITION and "disabled" in lower:
        return _not_enabled(project)
    return None


def _for_permission(message: str, queue: str, where: str, project: str) -> str:
    account = metadata.ask_on_google(metadata.SERVICE_ACCOUNT) or "ACCOUNT"
    if "disabled" in message or "has not been used" in message:
        return _not_enabled(project)
    if "actas" in message:
        token_account = current_settings().service_account or account
        return (
            f"{account} may not send tokens of the service account {token_account}: run `gcloud iam service-accounts "
            f"add-iam-policy-binding {token_account} --member=serviceAccount:{account} "
            f"--role=roles/iam.serviceAccountUser --project={project}`."
        )
    return (
        f"{account} may not add tasks to queue {queue}: run `gcloud tasks queues add-iam-policy-binding {queue} "
        f"{where} --member=serviceAccount:{account} --role=roles/cloudtasks.enqueuer`. If the tasks have a "
        "service account, also run `gcloud iam service-accounts add-iam-policy-binding ACCOUNT "
        f"--member=serviceAccount:{account} --role=roles/iam.serviceAccountUser`."
    )


def _not_enabled(project: str) -> str:
    command = f"gcloud services enable cloudtasks.googleapis.com --project={project}"
    return f"the API of Cloud Tasks is not enabled: run `{command}`."
